"""Greedy answers of a lab model and their accuracy, by domain and by skill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lada.answers import extract_letter
from lada.config import GenerationOptions
from lada.generation import generate
from lada.language_model import LanguageModel
from lada.prompts import prompt
from lada.records import Item

GREEDY = GenerationOptions(max_new_tokens=96, batch_size=128, temperature=0.0)


def accuracy(
    model: LanguageModel, items: Sequence[Item], *, cue: str = "reason", demo: Item | None = None
) -> dict[str, Any]:
    """Accuracy with standard error, shares of unparsed and unfinished answers, accuracy by domain.

    Args:
        cue: ``reason``, ``letter`` or ``steps`` (see `lada.prompts.prompt`).
        demo: makes the prompts one-shot.
    """
    prompts = [prompt(item, cue=cue, demo=demo) for item in items]
    answers = generate(model, prompts, GREEDY)
    letters = [extract_letter(one.text, item.options) for one, item in zip(answers, items, strict=True)]
    right = [letter == item.answer for letter, item in zip(letters, items, strict=True)]
    domains: dict[str, list[bool]] = {}
    for item, hit in zip(items, right, strict=True):
        domains.setdefault(item.domain, []).append(hit)
    return {
        **share(right),
        "unparsed": round(sum(letter is None for letter in letters) / len(items), 4),
        "unfinished": round(sum(not one.finished for one in answers) / len(items), 4),
        "domains": {name: share(hits) for name, hits in sorted(domains.items())},
    }


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Share of hits in per cent, its standard error in points, and the number of trials."""
    rate = sum(hits) / len(hits)
    error = math.sqrt(rate * (1 - rate) / len(hits))
    return {"accuracy": round(100 * rate, 2), "error": round(100 * error, 2), "n": len(hits)}
