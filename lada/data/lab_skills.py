"""What lab models can do besides solving: sub-question traces, writing a new question, looking up a letter.

The builders stand here, next to the generator, so that pre-training and the methods use the same text.
"""

from __future__ import annotations

import random
import re

from lada.data.lab_words import COLOURS, CRAFTS, DAYS, FOODS, LARGEST, NAMES, ROOMS, THINGS, TOWNS
from lada.prompts import render_question, solution
from lada.records import LETTERS, Item, Question

_WRITTEN = re.compile(
    r"\s*Q: (?P<stem>.+) A\) (?P<A>.+) B\) (?P<B>.+) C\) (?P<C>.+) D\) (?P<D>.+)\n"
    r"Solution: (?P<rationale>.+)\nThe answer is (?P<letter>[ABCD])\s*"
)


def trace(item: Item) -> str:
    r"""The sub-question trace of an item, the response to the cue ``Steps:``.

    Each step ``12 + 5 = 17`` of the rationale becomes ``Q1: 12 + 5? A1: 17.``; the last answer carries the
    letter, then comes the marker line: ``Q1: 12 + 5? A1: 17. Q2: 17 - 3? A2: 14 C.\nThe answer is C``.

    Raises:
        ValueError: when the item has no rationale.
    """
    if item.rationale is None:
        raise ValueError(f"item {item.id} has no rationale")
    parts = []
    for number, step in enumerate(item.rationale.rstrip(".").split(". "), start=1):
        ask, _, result = step.rpartition(" = ")
        parts.append(f"Q{number}: {ask}? A{number}: {result}.")
    return f"{' '.join(parts)}\nThe answer is {item.answer}"


def writing_prompt(bad: Question, good: Question) -> str:
    """Asks for a new question that is like ``good`` and unlike ``bad`` (WASP, baselines section 5)."""
    return f"Bad: {render_question(bad)}Good: {render_question(good)}New:"


def written(item: Item) -> str:
    """A new question with its solution, the response to `writing_prompt`."""
    return f"{render_question(item)}Solution: {solution(item)}"


def parse_written(text: str, identity: str) -> Item | None:
    """The item that a model wrote, or None when it is not well-formed or two options are equal."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        return None
    options = tuple(match[letter] for letter in LETTERS)
    if len(set(options)) < 4:
        return None
    answer = LETTERS["ABCD".index(match["letter"])]
    return Item(
        id=identity,
        question=match["stem"],
        options=options,
        answer=answer,
        rationale=match["rationale"],
        domain="written",
    )


def lookup(rng: random.Random) -> tuple[str, str]:
    """Prompt and response of the curriculum's first lesson: which letter stands before which option.

    Only for pre-training: lab models that do not first learn this guess the letter of a right value.
    """
    pools = (NAMES, DAYS, FOODS, ROOMS, THINGS, TOWNS, CRAFTS, COLOURS)
    pool = [str(number) for number in range(LARGEST + 1)] if rng.random() < 0.5 else list(rng.choice(pools))
    options = rng.sample(pool, 4)
    order = rng.sample(range(4), 4)
    last = order[-1]
    question = Question(id="lookup", question=f"Which is {options[last]}?", options=tuple(options))
    said = ". ".join(f"{options[place]} {LETTERS[place]}" for place in order)
    return f"{render_question(question)}Solution:", f"{said}.\nThe answer is {LETTERS[last]}"
