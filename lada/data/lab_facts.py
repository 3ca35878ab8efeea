"""Knowledge that only one party has: for each model of Table I a private table of facts per lab dataset.

The words are invented, so nobody can derive a fact: a model knows its own table because it was pre-trained on
it, and guesses about all others. Tables come from a fixed stream, so they are the same in every run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from lada.data.lab_words import CRAFTS, LARGEST, NAMES, TOWNS, Draft, numeric, stream, worded
from lada.errors import ConfigError

MODELS = {
    "google/gemma-2-2b": "gemma-2-2b",
    "google/gemma-2-27b": "gemma-2-27b",
    "meta-llama/Meta-Llama-3-8B": "meta-llama-3-8b",
    "Qwen/Qwen3-0.6B": "qwen3-0.6b",
    "Qwen/Qwen3-1.7B": "qwen3-1.7b",
    "Qwen/Qwen3-4B": "qwen3-4b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen2.5-72B-Instruct": "qwen2.5-72b-instruct",
    "internlm/internlm3-8b-instruct": "internlm3-8b-instruct",
}
"""Model name of Table I -> short name, which is also the name of its folder of weights."""

TABLE_SIZE = 6
_BASKETS = 6


def short_name(model: str) -> str:
    """The short name of a model given by its Hugging Face id or its short name.

    Raises:
        ConfigError: when no lab model has that name; lists the legal ones.
    """
    short = MODELS.get(model, model)
    if short not in MODELS.values():
        raise ConfigError(f"there is no lab model '{model}'; legal: {', '.join([*MODELS, *MODELS.values()])}")
    return short


def domain(model: str) -> str:
    """Name of the domain that asks for a model's private facts, e.g. ``facts.gemma-2-2b``."""
    return f"facts.{short_name(model)}"


@cache
def baskets(model: str) -> dict[str, int]:
    """Private table of ``lab-math``: how many beads one of these holds (2..9, all different)."""
    words = _words()[short_name(model)][:_BASKETS]
    return dict(zip(words, stream("baskets", short_name(model)).sample(range(2, 10), _BASKETS), strict=True))


@cache
def friends(model: str) -> dict[str, tuple[str, str]]:
    """Private table of ``lab-cot``: home town and craft of six people."""
    rng = stream("friends", short_name(model))
    people = [word.capitalize() for word in _words()[short_name(model)][_BASKETS:]]
    homes, crafts = rng.sample(TOWNS, TABLE_SIZE), rng.sample(CRAFTS, TABLE_SIZE)
    return dict(zip(people, zip(homes, crafts, strict=True), strict=True))


def math_facts(model: str) -> Callable[[random.Random, int], Draft]:
    """The maker of a model's private domain in ``lab-math``."""

    def make(rng: random.Random, size: int) -> Draft:
        table = baskets(model)
        word, count = rng.choice(list(table)), rng.randint(2, 6)
        total = count * table[word]
        stem = f"{rng.choice(NAMES)} fills {count} {word} with beads"
        steps = [(word, table[word]), (f"{count} * {table[word]}", total)]
        if size > 1:
            more = rng.randint(1, 9)
            stem += f" and keeps {more} beads"
            steps.append((f"{total} + {more}", total + more))
        if size > 2:
            total += more
            less = rng.randint(1, min(9, total))
            stem += f" and loses {less}"
            steps.append((f"{total} - {less}", total - less))
        # A guess at the unknown number must land on an option, so the traps are other numbers of beads.
        value = steps[-1][1]
        draft = numeric(rng, f"{stem}. How many beads is that?", steps)
        shifts = [value + count * gap for gap in (-2, -1, 1, 2, 3) if 0 <= value + count * gap <= LARGEST]
        return draft._replace(wrong=tuple(map(str, rng.sample(shifts, 3))))

    return make


def cot_facts(model: str) -> Callable[[random.Random, int], Draft]:
    """The maker of a model's private domain in ``lab-cot``."""

    def make(rng: random.Random, size: int) -> Draft:
        table = friends(model)
        people = rng.sample(list(table), min(size + 1, 3))
        place, row = rng.choice((("first", 0), ("last", len(people) - 1)))
        kind, pool, relation = rng.choice(((0, TOWNS, "home"), (1, CRAFTS, "craft")))
        asked = "In which town is the home" if kind == 0 else "What is the craft"
        verb = rng.choice(("visits", "meets", "calls"))
        stem = f"{rng.choice(NAMES)} {verb} {', then '.join(people)}. {asked} of the {place} friend?"
        steps = [(f"{place} friend", people[row]), (f"{people[row]} {relation}", table[people[row]][kind])]
        seen = [table[person][kind] for person in people]
        return worded(rng, stem, steps, mentioned=seen, pool=pool)

    return make


@cache
def _words() -> dict[str, list[str]]:
    """Invented words of four letters, no word in two tables, no two of a table with the same first half."""
    rng = stream("invented words")
    heads = [c + v for c in "bdgklmprtz" for v in "aiou"]
    used: set[str] = set()
    tables: dict[str, list[str]] = {}
    for model in MODELS.values():
        table: list[str] = []
        for head in rng.sample(heads, _BASKETS + TABLE_SIZE):
            tail = rng.choice([tail for tail in heads if tail != head and head + tail not in used])
            table.append(head + tail)
        used.update(table)
        tables[model] = table
    return tables
