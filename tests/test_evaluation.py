from __future__ import annotations

import math
from unittest import mock

import pytest
from tiny_models import tiny_model

from lada import evaluation
from lada.config import GenerationOptions
from lada.evaluation import evaluate
from lada.generation import Generated
from lada.prompts import prompt
from lada.records import Item

OPTIONS = GenerationOptions(max_new_tokens=6, batch_size=3)


def item(number: int, *, domain: str = "all") -> Item:
    return Item(
        id=f"q{number}",
        question=f"What is {number}?",
        options=("1", "2", "3", "4"),
        answer="B",
        domain=domain,
    )


def answered(texts: list[tuple[str, bool]], items: list[Item]) -> evaluation.Evaluation:
    """An evaluation in which a model says ``texts``."""
    answers = [Generated(text, 5 + i, finished, -1.0) for i, (text, finished) in enumerate(texts)]
    with mock.patch.object(evaluation, "generate", return_value=answers):
        return evaluate(tiny_model(), items, template="lab", demo=None, options=OPTIONS)


def test_letters_truncation_and_rates() -> None:
    items = [item(0), item(1, domain="x"), item(2, domain="x"), item(3)]
    texts = [
        ("The answer is B", True),
        ("the answer is (B)", False),
        ("The answer is C", True),
        ("dunno", False),
    ]
    found = answered(texts, items)
    assert [(p.id, p.letter, p.correct, p.truncated) for p in found.predictions] == [
        ("q0", "B", True, False),
        ("q1", "B", True, True),  # hit the limit, and counts by its letter
        ("q2", "C", False, False),
        ("q3", None, False, True),
    ]
    assert found.metrics == {
        "accuracy": 0.5,
        "accuracy_se": 0.25,
        "accuracy/all": 0.5,
        "accuracy/x": 0.5,
        "unparsed_rate": 0.25,
        "truncated_rate": 0.5,
    }
    assert found.lengths == {"q0": 5, "q1": 6, "q2": 7, "q3": 8}


def test_standard_error_is_binomial() -> None:
    found = answered([("The answer is B", True)] * 3 + [("", True)], [item(i) for i in range(4)])
    assert found.metrics["accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_no_items() -> None:
    assert answered([], []).metrics == {}


def test_prompts_demo_and_options_reach_the_model() -> None:
    demo = Item(**(item(9).model_dump() | {"rationale": "2 is 2."}))
    items = [item(0), item(1)]
    with mock.patch.object(evaluation, "generate", return_value=[Generated("", 0, False, -1.0)] * 2) as spy:
        evaluate(
            tiny_model(), items, template="plain", demo=demo, options=OPTIONS, seed=7, expected_lengths=[1, 2]
        )
    assert spy.call_args.args[1] == [prompt(one, template="plain", demo=demo) for one in items]
    assert spy.call_args.args[2] == OPTIONS
    assert spy.call_args.kwargs["seed"] == 7
    assert spy.call_args.kwargs["expected_lengths"] == [1, 2]


def test_a_real_model_answers_every_item_the_same_way_twice() -> None:
    model, items, seen = tiny_model("llama", tie_word_embeddings=False), [item(i) for i in range(5)], []
    first, second = (
        evaluate(
            model, items, template="lab", demo=None, options=OPTIONS, progress=lambda *done: seen.append(done)
        )
        for _ in range(2)
    )
    assert first == second
    assert [p.id for p in first.predictions] == [one.id for one in items]
    assert seen[-1] == (5, 5)
    assert set(first.lengths.values()) <= set(range(1, 7))
