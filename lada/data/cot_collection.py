"""CoT-Collection (kaist-ai): ONE JSON object id -> {source, target, rationale, task, type}, 2.4 GB: streamed.

Rows are kept by what they print, not by their task: the same task has prompts with and without options. A
prompt's own instructions ("Choose the most suitable option ...") are taken off the question, so that one
question under several prompts counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lada.data import Federation, Request
from lada.data.cot_layouts import find_block
from lada.data.grouping import stem_key, wording_key
from lada.data.parsing import (
    LABELS,
    Content,
    Dropped,
    ParsedRow,
    field,
    fold,
    matching_option,
    optional_text,
    parse_rows,
)
from lada.data.sources import local_file, object_records
from lada.data.splits import split
from lada.data.statements import agreeing_rationale

_NUM_COMMA = {"social_i_qa": 3}  # its options hold commas themselves
_TARGET = re.compile(r"(?:option\s+)?[(\[]?([A-Z]|\d{1,2})[)\]]?\s*[.:]?", re.I)
_TARGET_TEXT = re.compile(r"[(\[]?([A-Z])[)\].:]+\s*(\S.*)", re.S)
_TWO = re.compile(r"\(?[A-Z]\)?\s*(?:,|&|/|and|or)\s*\(?[A-Z]\)?\.?", re.I)
_INSTRUCTION = re.compile(
    r"(?:please\s+)?(?:choose|pick|select) the (?:most )?(?:suitable|correct|appropriate|best|right) "
    r"(?:option|answer)(?: (?:to answer|for|from|to) .*)?"
    r"|given the following options, what do you think is the correct answer to the question below"
    r"|read the .{0,60}(?:choose|pick|select|answer) .{0,60}"
    r"|which one of these answers best answers the question"
    r"|(?:so,? )?(?:the |what is the )?(?:best|correct|right)? ?answer(?: is)?"
    r"|is the right answer [A-Z](?:, [A-Z])*,? or [A-Z]"
    r"|=+|[AQ]",
    re.I,
)
_PREFIX = re.compile(r"^(?:Question|Q)\s*:\s*", re.I)


def parse(path: Path) -> Iterator[ParsedRow]:
    """One row per record, in file order; ``row`` is the record's key.

    Raises:
        DataError: while iterating, when the file is missing, no JSON object, or cut off.
    """
    return parse_rows(object_records(path), _extract, _copy_keys)


def federation(request: Request) -> Federation:
    """Parse ``request.file`` and split it; see `lada.data.splits.split`."""
    return split(parse(local_file(request)), request, {"format": "cot_collection"})


def _copy_keys(content: Content) -> tuple[str, ...]:
    wording = wording_key(content.question, content.options)
    return (stem_key(content.question),) + ((wording,) if wording else ())


def _extract(record: Mapping[str, object]) -> Content:
    source, target = field(record, "source"), field(record, "target")
    block = find_block(source, num_comma=_NUM_COMMA.get(str(record.get("task"))))
    question = _question(block.stem)
    if not question:
        raise Dropped("no-question")
    answer = _answer(target, block.options, block.labels)
    options = _without_stray_stop(block.options, answer, target)
    rationale = optional_text(record, "rationale")
    if rationale is not None:
        rationale = rationale.replace("\\n", "\n").strip() or None
    return Content(question, options, answer, agreeing_rationale(rationale, options, answer))


def _question(stem: str) -> str:
    """The stem without the prompt's own instructions and cues."""
    kept = []
    for line in stem.split("\n"):
        if not _INSTRUCTION.fullmatch(fold(line).strip().rstrip(".:?").strip()):
            kept.append(_PREFIX.sub("", line.strip()))
    return re.sub(r"\n{2,}", "\n", "\n".join(kept)).strip()


def _answer(target: str, options: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """The label of the right option: by its printed label, else by its text.

    Raises:
        Dropped: neither, both with different results, or two labels.
    """
    by_text = matching_option(target, options)
    by_label = None
    if labels and (match := _TARGET.fullmatch(fold(target))):
        name = match.group(1).upper()
        by_label = LABELS[labels.index(name)] if name in labels else None
        if by_label is None and by_text is None:
            raise Dropped("target-outside-options")
    if by_label is None and labels and (match := _TARGET_TEXT.fullmatch(fold(target))):
        text = matching_option(target[match.start(2) :], options)
        by_label = text if text is not None and labels[LABELS.index(text)] == match.group(1) else None
    if by_label is not None and by_text is not None and by_label != by_text:
        raise Dropped("ambiguous-target")
    found = by_label or by_text
    if found is None:
        raise Dropped("two-letters" if labels and _TWO.fullmatch(target) else "target-not-an-option")
    return found


def _without_stray_stop(options: tuple[str, ...], answer: str, target: str) -> tuple[str, ...]:
    """Where option and target differ by a final stop alone ("Friends." and "Friends"), the stop goes."""
    index = LABELS.index(answer)
    if options[index] != target.rstrip(".") + ".":
        return options
    if target.endswith("."):
        return options
    return (*options[:index], target, *options[index + 1 :])
