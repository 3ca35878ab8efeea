"""From a generated text to an option letter (baselines, common frame)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lada.records import LETTERS, Letter

# A bare small letter is no answer: "the answer is a number".
_MARKER = re.compile(r"(?i:answer is:?)\s*(?=\([A-Da-d]\)|\(?[ABCD]\b)\(?(\w)")
_BRACKETED = re.compile(r"\(([ABCD])\)")


def extract_letter(text: str, options: Sequence[str]) -> Letter | None:
    """The letter that a response gives, or None (counted as wrong, reported as unparsed).

    Order: the last "answer is X" marker; the last bracketed letter "(X)"; the only option whose text
    stands in the response; the response is nothing but a letter.

    Args:
        text: the response, without the prompt.
        options: the four option texts.
    """
    for pattern in (_MARKER, _BRACKETED):
        found = pattern.findall(text)
        if found:
            return _letter(found[-1])
    squeezed = _normalise(text)
    inside = [
        letter
        for letter, option in zip(LETTERS, options, strict=True)
        if _normalise(option) and f" {_normalise(option)} " in f" {squeezed} "
    ]
    if len(inside) == 1:
        return inside[0]
    bare = text.strip().rstrip(".")
    return _letter(bare) if bare in LETTERS else None


def has_marker(text: str) -> bool:
    """Whether a text says "the answer is X", in whatever place."""
    return _MARKER.search(text) is not None


def _letter(text: str) -> Letter:
    return LETTERS["ABCD".index(text.upper())]


def _normalise(text: str) -> str:
    return " ".join(re.sub(r"[^\w%$+*/.-]+", " ", text.lower()).replace(". ", " ").strip(" .").split())
