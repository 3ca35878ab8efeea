"""Accuracy on multiple-choice questions, answered by a generated chain of thought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lada.answers import extract_letter
from lada.config import GenerationOptions
from lada.generation import Generated, generate
from lada.language_model import LanguageModel
from lada.prompts import prompt
from lada.records import Item, Prediction
from lada.resume import Resume


@dataclass(frozen=True)
class Evaluation:
    """What a test set gave.

    Attributes:
        predictions: one per item, in order.
        metrics: fractions in 0..1: ``accuracy``, its binomial standard error ``accuracy_se``,
            ``accuracy/<domain>``, ``unparsed_rate`` (no letter found) and ``truncated_rate`` (the token limit
            ended the response); empty for no items.
        lengths: generated tokens by item id; the next round's ``expected_lengths``.
    """

    predictions: list[Prediction]
    metrics: dict[str, float]
    lengths: dict[str, int]


def evaluate(
    model: LanguageModel,
    items: Sequence[Item],
    *,
    template: str,
    demo: Item | None,
    options: GenerationOptions,
    seed: int = 0,
    expected_lengths: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: Resume | None = None,
) -> Evaluation:
    """Answer every item and compare letters.

    A response without a letter counts as wrong; one that hit the token limit counts by its letter, if it has
    one, and is flagged.

    Args:
        template, demo: of the prompts; ``demo`` makes them one-shot.
        options, seed, expected_lengths, progress, resume: see `generate`.
    """
    prompts = [prompt(item, template=template, demo=demo) for item in items]
    answers = generate(
        model,
        prompts,
        options,
        seed=seed,
        expected_lengths=expected_lengths,
        progress=progress,
        resume=resume,
    )
    return judge(items, answers)


def judge(items: Sequence[Item], answers: Sequence[Generated]) -> Evaluation:
    """Compare the letters of answers, one per item in order, with the items' own."""
    predictions = []
    for item, answer in zip(items, answers, strict=True):
        letter = extract_letter(answer.text, item.options)
        predictions.append(
            Prediction(
                id=item.id,
                letter=letter,
                correct=letter == item.answer,
                truncated=not answer.finished,
                text=answer.text,
            )
        )
    lengths = {item.id: answer.num_tokens for item, answer in zip(items, answers, strict=True)}
    return Evaluation(predictions, _metrics(items, predictions), lengths)


def _metrics(items: Sequence[Item], predictions: Sequence[Prediction]) -> dict[str, float]:
    if not items:
        return {}
    accuracy = _mean([one.correct for one in predictions])
    domains: dict[str, list[bool]] = {}
    for item, one in zip(items, predictions, strict=True):
        domains.setdefault(item.domain, []).append(one.correct)
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(items)),
        **{f"accuracy/{domain}": _mean(right) for domain, right in sorted(domains.items())},
        "unparsed_rate": _mean([one.letter is None for one in predictions]),
        "truncated_rate": _mean([one.truncated for one in predictions]),
    }


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
