"""Self-boosted weights: which batches carry which weights, and what a model is found to miss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lada.boosting import Boosting, missed_samples, share_of, solved_example
from lada.local import train
from lada.losses import PairLoss
from lada.records import Item
from lada.rundir import RunDir
from lada.training import Example, Term
from lada.training_state import StepLog
from lada.voting import boost_base
from tests.one_party import party

pytestmark = pytest.mark.usefixtures("smallest_lab")

TinyRun = Callable[..., RunDir]


def example(name: str) -> Example:
    return Example(name, (1,), ((2,),), (Term("", 0, None),))


def test_weights_change_when_an_epoch_ends_and_not_before() -> None:
    calls: list[int] = []

    def judge() -> dict[str, float]:
        calls.append(len(calls))
        return {"b": 0.25}

    boosting = Boosting({"a": 1.0, "b": 1.0}, epochs=2, per_epoch=2, judge=judge)
    seen = [boosting.keep([example(name)])[0].terms[0].weight for name in ("a", "b", "a", "b")]
    assert calls == [0]
    boosting.update()
    assert calls == [0, 1] and boosting.missed == [0.5, 0.5]
    base = boost_base(2, 2)
    assert base == 1.0 and seen == [1.0] * 4, "two samples, two epochs: nothing moves"


def test_what_is_missed_weighs_less_and_the_mean_stays_1() -> None:
    names = [f"q{number}" for number in range(10)]
    boosting = Boosting(dict.fromkeys(names, 1.0), epochs=1, per_epoch=5, judge=lambda: {"q3": 0.4})
    boosting.update()
    factor = (1 + math.sqrt(2 * math.log(10))) ** -0.6
    total = 9 + factor
    assert boosting.weights["q3"] == pytest.approx(10 * factor / total)
    assert boosting.weights["q0"] == pytest.approx(10 / total)
    assert sum(boosting.weights.values()) == pytest.approx(10)
    batch = boosting.keep([example("q3"), example("q0")])
    assert [e.terms[0].weight for e in batch] == [boosting.weights["q3"], boosting.weights["q0"]]


def test_without_a_judge_or_samples_nothing_changes() -> None:
    still = Boosting({"a": 0.5, "b": 1.5}, epochs=3, per_epoch=1, judge=None)
    still.update()
    assert (still.weights, still.missed) == ({"a": 0.5, "b": 1.5}, [])
    empty = Boosting({}, epochs=3, per_epoch=1, judge=dict)
    empty.update()
    assert empty.missed == []


def test_a_share_among_four() -> None:
    assert share_of([math.log(0.1), math.log(0.3), math.log(0.4), math.log(0.2)], 1) == pytest.approx(0.3)
    assert share_of([-1000.0, -1000.0, -2000.0, -2000.0], 0) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def run(tiny_run: TinyRun) -> RunDir:
    return tiny_run("boosting")


def questions(right: str) -> list[Item]:
    return [
        Item(
            id=f"q{number}",
            question=f"Which is {number}?",
            options=tuple(f"{number + gap}" for gap in (10, 20, 30, 40)),
            answer=right,  # type: ignore[arg-type]
            rationale=f"it is {right}",
        )
        for number in range(4)
    ]


def test_a_random_model_misses_almost_everything_with_a_probability_between_0_and_1(run: RunDir) -> None:
    one = party(run, "client-1")
    missed = missed_samples(one, one.open_model(), questions("B"))
    assert missed and set(missed) <= {"q0", "q1", "q2", "q3"}
    assert all(0 < value < 1 for value in missed.values())


def test_a_model_that_learnt_the_answers_misses_nothing(run: RunDir) -> None:
    one = party(run, "client-1")
    model = one.open_model()
    items = questions("C")
    examples = [solved_example(one, model, item) for item in items]
    options = one.training("client").model_copy(update={"epochs": 150, "max_steps": None, "batch_size": 4})
    logs: list[StepLog] = train(
        one, model, examples, options, PairLoss(kind="cross_entropy"), name="x", learning_rate=0.02
    )
    assert logs[-1].objective < logs[0].objective / 10
    assert missed_samples(one, model, items) == {}
