"""MathInstruct (TIGER-Lab): one JSON array of {source, output, instruction}.

Only ``data/CoT/aqua_rat.json`` holds multiple-choice questions with a letter as answer (and it is
Apache-2.0); the other sources are counted as dropped. Choice: the statement "The answer is X" and AQuA's own
endings are both read, since about 30% of the rows lack the former (data page, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lada.data import Federation, Request
from lada.data.grouping import stem_key
from lada.data.parsing import (
    Content,
    Dropped,
    ParsedRow,
    bracketed_options,
    checked_options,
    field,
    fold,
    parse_rows,
)
from lada.data.sources import array_records, local_file
from lada.data.splits import split
from lada.data.statements import stated_answer

SOURCE = "data/CoT/aqua_rat.json"
_HEADER = re.compile(r"\bAnswer Choices\s*:", re.I)
_OPENING = re.compile(r"\A\s*Let.?s\b[^\n.]*\bmulti(?:ple)?-?\s?choice\b[^\n.]*(?:\.\s*|\n+|$)", re.I)


def parse(path: Path) -> Iterator[ParsedRow]:
    """One row per record, in file order; ``row`` is the index from 0.

    Raises:
        DataError: while iterating, when the file is missing, no JSON array, or cut off.
    """
    return parse_rows(array_records(path), _extract, lambda content: (stem_key(content.question),))


def federation(request: Request) -> Federation:
    """Parse ``request.file`` and split it; see `lada.data.splits.split`."""
    return split(parse(local_file(request)), request, {"format": "mathinstruct"})


def _extract(record: Mapping[str, object]) -> Content:
    if field(record, "source") != SOURCE:
        raise Dropped("other-source")
    instruction, output = field(record, "instruction"), field(record, "output")
    headers = list(_HEADER.finditer(fold(instruction)))
    if not headers:
        raise Dropped("no-options")
    if len(headers) > 1:
        raise Dropped("options-twice")
    question = instruction[: headers[0].start()].strip()
    if not question:
        raise Dropped("no-question")
    options = checked_options(bracketed_options(instruction[headers[0].end() :]))
    answer, rationale = stated_answer(_OPENING.sub("", output).strip() or output, options)
    return Content(question, options, answer, rationale or None)
