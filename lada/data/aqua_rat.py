"""AQuA-RAT: JSON lines, plain or gzip, in two layouts.

The original has ``question``, ``options`` (labelled, "A)21"), ``rationale``, ``correct``; the prepared files
have unlabelled ``options``, ``answer``, and an ``id`` and a ``group`` of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lada.data import Federation, Request
from lada.data.grouping import stem_key
from lada.data.parsing import (
    LABELS,
    Content,
    Dropped,
    ParsedRow,
    checked_options,
    clean,
    field,
    fold,
    optional_text,
    parse_rows,
)
from lada.data.sources import line_records, local_file
from lada.data.splits import split
from lada.data.statements import agreeing_rationale

_LABEL = re.compile(r"\s*\(?([A-J])\s*[).:]\s*")


def parse(path: Path) -> Iterator[ParsedRow]:
    """One row per line that is not blank, in file order; ``row`` is the index from 0.

    Raises:
        DataError: while iterating, when the file is missing, cut off, or a line is no JSON object.
    """
    return parse_rows(line_records(path), _extract, lambda content: (stem_key(content.question),))


def federation(request: Request) -> Federation:
    """Parse ``request.file`` and split it; see `lada.data.splits.split`."""
    return split(parse(local_file(request)), request, {"format": "aqua_rat"})


def _extract(record: Mapping[str, object]) -> Content:
    question = field(record, "question")
    original = "correct" in record
    options = _options(record, labelled=original)
    answer = field(record, "correct" if original else "answer").strip("(). ").upper()
    if len(answer) != 1 or answer not in LABELS:
        raise Dropped("no-answer")
    if LABELS.index(answer) >= len(options):
        raise Dropped("answer-outside-options")
    rationale = agreeing_rationale(optional_text(record, "rationale"), options, answer)
    group, name = optional_text(record, "group"), optional_text(record, "id")
    return Content(question, options, answer, rationale, group or "", name or "")


def _options(record: Mapping[str, object], *, labelled: bool) -> tuple[str, ...]:
    given = record.get("options")
    if not isinstance(given, list) or not given:
        raise Dropped("no-options")
    if not all(isinstance(option, str) for option in given):
        raise Dropped("option-not-text")
    texts = [clean(option) for option in given]
    if not labelled:
        return checked_options(texts)
    bare = []
    for expected, text in zip(LABELS, texts, strict=False):
        match = _LABEL.match(fold(text))
        if match is None:
            raise Dropped("no-labels")
        if match.group(1) != expected:
            raise Dropped("label-gap" if match.group(1) > expected else "label-twice")
        bare.append(text[match.end() :])
    return checked_options(bare)
