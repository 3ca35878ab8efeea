"""Letters for questions that come without one: a vote of models, and a byte per letter on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lada.payloads import Origin
from lada.records import LETTERS, Letter

_NONE = len(LETTERS)
_MARKER = re.compile(r"\s*\bthe answer is\b", re.IGNORECASE)


def majority(letters: Sequence[Letter | None]) -> Letter | None:
    """The letter that most voters give; the first voter (the LLM) decides ties.

    Choice: where that voter has no letter, the first voter among the tied decides; nobody has one: None, and
    the question has no label.
    """
    votes = [letter for letter in letters if letter is not None]
    if not votes:
        return None
    most = max(votes.count(letter) for letter in votes)
    tied = [letter for letter in votes if votes.count(letter) == most]
    first = letters[0]
    return first if first is not None and len(set(tied)) > 1 else tied[0]


def labelled(text: str, letter: Letter) -> str:
    """A reasoning text with another conclusion: what follows its last "the answer is" becomes the letter."""
    found = list(_MARKER.finditer(text))
    reasoning = text[: found[-1].start()] if found else text.rstrip()
    return f"{reasoning}\nThe answer is {letter}"


def coded(letters: Sequence[str | None]) -> NDArray[np.uint8]:
    """Letters as bytes: A to D as 0 to 3, none as 4."""
    return np.array([_NONE if one is None else "ABCD".index(one) for one in letters], dtype=np.uint8)


def decoded(arrays: Mapping[str, NDArray[np.generic]], count: int, origin: Origin) -> list[Letter | None]:
    """Letters from a message that the exchange has checked.

    Raises:
        ExchangeError: check ``item-count`` when there are not ``count``.
    """
    found: list[int] = arrays["letters"].tolist() if "letters" in arrays else []
    if len(found) != count:
        raise origin.error("item-count", f"{len(found)} letters, the public set has {count} questions")
    return [None if one == _NONE else LETTERS[one] for one in found]
