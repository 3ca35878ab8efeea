"""Answer statements at the end of a rationale: "The answer is C", "ANSWER:C", "Hence (B) is correct"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lada.data.parsing import LABELS, Dropped, fold, matching_option

_TAIL = 300  # characters of a line that are searched for a statement
_LEAD = r"(?:\b(?:so|hence|thus|therefore|then)\b[\s,:]*)?"
_MARK = re.compile(
    _LEAD + r"(?:\bthe\s+)?(?:\b(?:correct|right|best|final|required)\s+)?\b(?:answer|ans|option|choice)\b",
    re.I,
)
_LINK = (
    r"(?:\s|[:=.\-\u2013\u2014>]|\b(?:is|will\s+be|would\s+be|should\s+be|must\s+be|the)\b)*"
    r"(?:\b(?:correct\s+)?(?:option|choice|answer|letter)\b[\s:\-]*(?:is\b\s*)?)?"
)
_LETTER = re.compile(_LINK + r"[(\[]?\s*([A-J])\s*[)\]]?\s*[.!]*\s*", re.I)
_LETTER_TEXT = re.compile(_LINK + r"[(\[]?\s*([A-J])(?:\s*[)\].:,]+\s*|\s+(?=\())(\S.*)", re.I)
_TEXT = re.compile(_LINK + r"(\S.*)", re.I)
_IS_ANSWER = re.compile(
    _LEAD + r"(?:\b(?:option|choice|answer)\s+)?(?<!\w)[(\[]?\s*([A-J])\s*[)\]]?\s+is\s+"
    r"(?:the\s+|our\s+)?(?:(?:correct|right|best)(?:\s+(?:answer|option|choice))?|answer)\s*[.!]*\s*$",
    re.I,
)
_BARE = re.compile(r"[(\[]?([A-J])[)\]]?[.!]*")
_LINE = re.compile(r"[(\[]?([A-J])[)\].:]\s*(\S.*)")
_STRICT = re.compile(r"(?:so\s+)?the answer is:?\s*\(?([A-J])\)?\s*\.?", re.I)
_TWO = re.compile(r"(?<!\w)\(?[A-J]\)?\s*(?:,|&|/|\b(?:and|or)\b)\s*(?:(?i:option)\s*)?\(?[A-J]\)?\s*\.?$")
# "Neither option A nor option B", "Option A and option B": the last one alone is not what is stated.
_NEGATION = re.compile(r"\b(?:not|nor|neither|except|either|both)\s*$", re.I)
_JOINED = re.compile(r"(?<!\w)\(?[A-J]\)?\s+(?:and|or)\s*$")


@dataclass(frozen=True)
class Statement:
    """A statement found in a line: where it begins, and the label it gives."""

    start: int
    label: str


def split_statement(text: str, options: tuple[str, ...]) -> tuple[str | None, str]:
    """The label that a text ends on, and the text without any statement at its end.

    The last line decides; where it states nothing, the last line that is "The answer is X" and nothing
    else does, and what follows it goes. Of several statements the last one counts.

    Returns:
        (label or None, the text that remains). The label may lie outside ``options``.

    Raises:
        Dropped: when the last line names two labels.
    """
    lines = text.rstrip().split("\n")
    label: str | None = None
    found = _in_line(lines[-1], options)
    if found is None:
        for index in range(len(lines) - 2, -1, -1):
            if match := _STRICT.fullmatch(lines[index].strip()):
                return match.group(1).upper(), _without_end("\n".join(lines[:index]), options)
        return None, text.strip()
    label = found.label
    return label, _without_end("\n".join([*lines[:-1], lines[-1][: found.start]]), options)


def stated_answer(output: str, options: tuple[str, ...]) -> tuple[str, str]:
    """As `split_statement`, where the statement is the only source of the answer.

    Raises:
        Dropped: no statement, two labels, or a label outside the options.
    """
    label, rest = split_statement(output, options)
    if label is None:
        raise Dropped("no-answer")
    if LABELS.index(label) >= len(options):
        raise Dropped("answer-outside-options")
    return label, rest


def agreeing_rationale(text: str | None, options: tuple[str, ...], answer: str) -> str | None:
    """A rationale without its closing statement; None where nothing is left.

    Raises:
        Dropped: when the statement gives another option than ``answer``.
    """
    if text is None:
        return None
    label, rest = split_statement(text, options)
    if label is not None and label != answer:
        raise Dropped("rationale-names-another-option")
    return rest or None


def _without_end(text: str, options: tuple[str, ...]) -> str:
    """``text`` without further statements at its end."""
    lines = text.rstrip().split("\n")
    while lines:
        try:
            found = _in_line(lines[-1], options)
        except Dropped:
            break
        if found is not None:
            lines[-1] = lines[-1][: found.start].rstrip()
        if lines[-1].strip() and found is None:
            break
        if not lines[-1].strip():
            lines.pop()
    return "\n".join(lines).strip()


def _in_line(line: str, options: tuple[str, ...]) -> Statement | None:
    line = line.rstrip()
    offset = max(0, len(line) - _TAIL)
    tail = fold(line[offset:])
    if _TWO.search(tail) and _MARK.search(tail):
        raise Dropped("two-letters")
    if match := _BARE.fullmatch(tail.strip()):
        return Statement(0, match.group(1))
    for mark in _MARK.finditer(tail):
        label = _after_mark(tail[mark.end() :], options)
        if label is not None:
            before = tail[: mark.start()]
            names_option = "answer" not in mark.group().lower()
            if _JOINED.search(before) or (names_option and _NEGATION.search(before)):
                raise Dropped("two-letters")
            return Statement(offset + mark.start(), label)
    if (match := _IS_ANSWER.search(tail)) and _stands_alone(match, tail):
        return Statement(offset + match.start(), match.group(1).upper())
    match = _LINE.fullmatch(tail.strip())
    if match and matching_option(match.group(2), options) == match.group(1):
        return Statement(0, match.group(1))
    return None


def _stands_alone(match: re.Match[str], tail: str) -> bool:
    """Not "statement A is correct", "train B is the best choice" or "such a is right"."""
    if match.group(1).islower() and "answer" not in match.group().lower():
        return False
    return not tail[: match.start()].rstrip()[-1:].isalpha()


def _after_mark(rest: str, options: tuple[str, ...]) -> str | None:
    if match := _LETTER.fullmatch(rest):
        return match.group(1).upper()
    if match := _LETTER_TEXT.fullmatch(rest):
        text, label = match.group(2).strip(), match.group(1).upper()
        inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        if label in (matching_option(text, options), matching_option(inner, options)):
            return label
    if match := _TEXT.fullmatch(rest):
        return matching_option(match.group(1), options)
    return None
