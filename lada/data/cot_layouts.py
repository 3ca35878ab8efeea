"""Option blocks as Flan, P3 and Super-NaturalInstructions prompts print them (data page, section 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lada.data.parsing import LABELS, Dropped, bracketed_options, checked_options, fold

_HEADER = re.compile(r"\b(Answer Choices|Answer options|Possible answers|Options|Choices)[ ]*:", re.I)
_LABEL = re.compile(
    r"\s*(?:[-*•]\s*)?(?:Option\s+)?"
    r"(?:\(([A-Z]|\d{1,2})\)|([A-Z])\s*(?:\.(?=\s|$)|[):]|->|→)|(\d{1,2})\s*(?:[.):](?=\s|$)|->|→))\s*(.*)$"
)
_DASH = re.compile(r"\s*[-*•](?:\s+(.*))?$")
_NO_BLOCK = "no-options"


@dataclass(frozen=True)
class Block:
    """Options of a prompt, the labels they stood under (none for dashes and commas), and the rest."""

    options: tuple[str, ...]
    labels: tuple[str, ...]
    stem: str


def find_block(source: str, *, num_comma: int | None = None) -> Block:
    """The option block of a prompt: after its last header ("Options:"), else the last run of option lines.

    Args:
        source: the whole prompt.
        num_comma: how many options the task is known to have where they stand in one line with commas.

    Raises:
        Dropped: no block, or one that cannot be read without guessing.
    """
    folded = fold(source)
    headers = list(_HEADER.finditer(folded))
    if headers:
        header = headers[-1]
        lines = source[header.end() :].split("\n")
        try:
            return _at_start(lines, source[: header.start()], header.group(1).lower(), num_comma)
        except Dropped as drop:
            if drop.reason != _NO_BLOCK:
                raise
    return _last_run(source.split("\n"))


def _at_start(lines: Sequence[str], head: str, header: str, num_comma: int | None) -> Block:
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise Dropped(_NO_BLOCK)
    first = fold(lines[start])
    if re.match(r"\s*\(A\).*\s\(B\)", first):
        labels = tuple(re.findall(r"(?<!\S)\(([A-J])\)", first))
        options = checked_options(bracketed_options(lines[start]))
        return Block(options, labels, _stem(head, lines[start + 1 :]))
    if _label(lines[start]) is not None or _DASH.match(first):
        return _block(lines, start, head)
    if header == "possible answers" and start == 0 and "," in first:
        texts = lines[0].split(",")
        if num_comma is not None and len(texts) != num_comma:
            raise Dropped("comma-in-option")
        return Block(checked_options(texts), (), _stem(head, lines[1:]))
    raise Dropped(_NO_BLOCK)


def _last_run(lines: Sequence[str]) -> Block:
    in_dashes = False
    starts = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        label, dashed = _label(line), _DASH.match(fold(line)) is not None
        if (label is not None and label[0] in "A1") or (dashed and not in_dashes):
            starts.append(index)
        in_dashes = dashed
    for start in reversed(starts):
        try:
            return _block(lines, start, "\n".join(lines[:start]))
        except Dropped as drop:
            if drop.reason != "one-option":
                raise
    raise Dropped(_NO_BLOCK)


def _block(lines: Sequence[str], start: int, head: str) -> Block:
    label = _label(lines[start])
    if label is None:
        texts, end = _dashes(lines, start)
        return Block(checked_options(texts), (), _stem(head, lines[end:]))
    texts, end = _labelled(lines, start, numbers=label[0].isdigit())
    labels = tuple(str(i + 1) if label[0].isdigit() else LABELS[i] for i in range(len(texts)))
    return Block(checked_options(texts), labels, _stem(head, lines[end:]))


def _labelled(lines: Sequence[str], start: int, *, numbers: bool) -> tuple[list[str], int]:
    """Lines with the labels A, B, ... (or 1, 2, ...) in order, blank lines between them allowed."""
    order = [str(i) for i in range(1, 27)] if numbers else list(LABELS)
    texts: list[str] = []
    end = start
    for index in range(start, len(lines)):
        if not lines[index].strip():
            continue
        label = _label(lines[index])
        if label is None or label[0] not in order:
            _no_label_after(lines[index:], order[len(texts)] if len(texts) < len(order) else "")
            break
        if label[0] == order[0] and len(texts) > 1 and not label[1].strip():
            break  # the cue "A:" of a question and answer prompt
        if len(texts) >= len(order) or label[0] != order[len(texts)]:
            raise Dropped("label-twice" if label[0] in order[: len(texts)] else "label-gap")
        texts.append(label[1])
        end = index + 1
    return texts, end


def _dashes(lines: Sequence[str], start: int) -> tuple[list[str], int]:
    texts: list[str] = []
    end = start
    for index in range(start, len(lines)):
        if not lines[index].strip():
            continue
        match = _DASH.match(fold(lines[index]))
        if match is None:
            if any(_DASH.match(fold(line)) for line in lines[index + 1 :]):
                raise Dropped("option-over-lines")
            break
        texts.append(lines[index][match.start(1) :] if match.group(1) else "")
        end = index + 1
    return texts, end


def _no_label_after(lines: Sequence[str], wanted: str) -> None:
    """An option that goes on in the next line cannot be told from what follows the block."""
    for line in lines[1:]:
        label = _label(line)
        if label is not None and label[0] == wanted:
            raise Dropped("option-over-lines")


def _label(line: str) -> tuple[str, str] | None:
    """(label, text) of a line that begins with a label."""
    match = _LABEL.match(fold(line))
    if match is None:
        return None
    label = match.group(1) or match.group(2) or match.group(3)
    return str(label), line[match.start(4) :]


def _stem(head: str, tail: Sequence[str]) -> str:
    return head.rstrip() + "\n" + "\n".join(tail).strip()
