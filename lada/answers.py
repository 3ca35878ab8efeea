"""From a generated text to an option letter (baselines, common frame)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lada.records import LETTERS, Letter

# A bare small letter is no answer: "the answer is a number".
_MARKER = re.compile(r"(?i:answer is:?)\s*(?=\([A-Da-d]\)|\(?[ABCD]\b)\(?(\w)")
_FINAL = re.compile(r"(?:[\s*_#>-]|(?i:so|thus|hence|therefore)\b,?)*(?i:the (?:final |correct )?answer is)")
_BRACKETED = re.compile(r"\(([ABCD])\)")


def extract_letter(text: str, options: Sequence[str]) -> Letter | None:
    """The letter of `read_letter`, or None (counted as wrong, reported as unparsed)."""
    return read_letter(text, options)[0]


def read_letter(text: str, options: Sequence[str]) -> tuple[Letter | None, str]:
    """The letter that a response gives, and in words what gave it.

    Order: the last "answer is X" marker; the last bracketed letter "(X)"; the only option whose text
    stands in the response; the response is nothing but a letter.

    Args:
        text: the response, without the prompt.
        options: the four option texts.
    """
    for pattern, rule in ((_MARKER, 'it says "answer is"'), (_BRACKETED, "its last letter in brackets")):
        found = pattern.findall(text)
        if found:
            return _letter(found[-1]), rule
    squeezed = _normalise(text)
    inside = [
        letter
        for letter, option in zip(LETTERS, options, strict=True)
        if _normalise(option) and f" {_normalise(option)} " in f" {squeezed} "
    ]
    if len(inside) == 1:
        return inside[0], "the only option whose text stands in it"
    bare = text.strip().rstrip(".")
    if bare in LETTERS:
        return _letter(bare), "it is nothing but a letter"
    return None, "no letter found"


def has_marker(text: str) -> bool:
    """Whether a text says "the answer is X", in whatever place."""
    return _MARKER.search(text) is not None


def answer_line_end(text: str) -> int | None:
    """Where the first final answer line of a response ends, before its line break; None: it has none yet.

    A line that begins with "the answer is X", or ends with it. Choice: not one that has it in its middle,
    such as "if the answer is A, then …": reasoning goes on there, and so does a line that has not ended.
    """
    start = 0
    while (end := text.find("\n", start)) >= 0:
        line = text[start:end]
        last = list(_MARKER.finditer(line))
        if last and (_FINAL.match(line) or not line[last[-1].end() :].strip(" \t\r).!*_$}")):
            return start + len(line.rstrip())
        start = end + 1
    return None


def _letter(text: str) -> Letter:
    return LETTERS["ABCD".index(text.upper())]


def _normalise(text: str) -> str:
    return " ".join(re.sub(r"[^\w%$+*/.-]+", " ", text.lower()).replace(". ", " ").strip(" .").split())
