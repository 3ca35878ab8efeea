"""The words of the lab task, and what one problem is before it gets options and a letter.

Ring 1: no torch. The word lists are short on purpose: a lab model has a vocabulary of some hundred tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

NAMES = ("Ann", "Bob", "Cal", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jan", "Kim", "Leo")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = ("pen", "cup", "hat", "key", "map", "bag")
FOODS = ("figs", "nuts", "peas", "rice", "eggs", "corn", "fish", "soup")
PETS = ("cat", "dog", "hen", "cow", "fox")
COLOURS = ("red", "blue", "green", "white", "black")
ROOMS = ("hall", "barn", "attic", "yard", "shop", "cave")
TOWNS = ("Oslo", "Rome", "Bern", "Lima", "Paris", "Cairo", "Delhi", "Tunis")
CRAFTS = ("baker", "smith", "tailor", "miner", "potter", "weaver", "pilot", "nurse")
UNITS = (("pairs", "shoes", 2), ("trios", "birds", 3), ("cars", "wheels", 4), ("hands", "fingers", 5))
LARGEST = 75
"""No number in a question, a rationale or an option is larger."""


class Draft(NamedTuple):
    """A problem before its options are ordered.

    Attributes:
        stem: the question.
        value: the right option's text.
        wrong: three or more other option texts, best distractors first.
        steps: pairs (what is worked out, result); the last result is ``value``.
    """

    stem: str
    value: str
    wrong: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]


def stream(*parts: object) -> random.Random:
    """A random stream of its own for every purpose: sha256 over the parts, never the global generator."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


def numeric(
    rng: random.Random, stem: str, steps: Sequence[tuple[str, int]], *, traps: Sequence[int] = ()
) -> Draft:
    """A draft whose answer is the last step's number; at most one trap, the rest are its neighbours."""
    value = steps[-1][1]
    seen = list(dict.fromkeys([*traps, *(result for _, result in steps[:-1])]))
    tempting = [number for number in seen if number != value and 0 <= number <= LARGEST]
    rng.shuffle(tempting)
    near = [value + gap for gap in (-3, -2, -1, 1, 2, 3) if value + gap >= 0]
    rng.shuffle(near)
    wrong = list(dict.fromkeys([*tempting[:1], *near]))[:3]
    return Draft(stem, str(value), tuple(map(str, wrong)), tuple((ask, str(result)) for ask, result in steps))


def worded(
    rng: random.Random,
    stem: str,
    steps: Sequence[tuple[str, str]],
    *,
    mentioned: Sequence[str],
    pool: Sequence[str],
) -> Draft:
    """A draft whose answer is the last step's word; other words of the stem tempt first, then the pool."""
    value = steps[-1][1]
    tempting = [word for word in dict.fromkeys(mentioned) if word != value]
    others = [word for word in pool if word != value and word not in tempting]
    rng.shuffle(tempting)
    rng.shuffle(others)
    return Draft(stem, value, tuple([*tempting, *others][:3]), tuple(steps))


def chain(rng: random.Random, start: int, length: int, *, top: int = 40) -> list[tuple[str, int, int, int]]:
    """Steps (sign, operand, before, after) of a sum that stays within 0..top; operands are 1..9."""
    rows, value = [], start
    for _ in range(length):
        operand, sign = rng.randint(1, 9), rng.choice("+-")
        if sign == "-" and value < operand:
            sign = "+"
        elif sign == "+" and value + operand > top:
            sign = "-"
        after = value + operand if sign == "+" else value - operand
        rows.append((sign, operand, value, after))
        value = after
    return rows
