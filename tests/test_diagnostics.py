"""What the filter did: figures that can be worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada.diagnostics import auc, correlation, filter_metrics
from lada.records import SampleLog

ANSWERS = {"q1": "A", "q2": "B", "q3": "C", "q4": "D"}


def log(name: str, chosen: str | None, rejected: str | None = None, **fields: object) -> SampleLog:
    given = {"id": name, "partner": "server", "selected_by": "filter", "chosen": chosen, "rejected": rejected}
    return SampleLog.model_validate(given | fields)


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([1, 2, 3, 4], [False, False, True, True], 1.0),
        ([4, 3, 2, 1], [False, False, True, True], 0.0),
        ([1, 1, 1, 1], [False, True, False, True], 0.5),
        ([1, 2, 2, 3], [False, False, True, True], 0.875),
        ([1, 2], [True, True], None),
        ([], [], None),
    ],
)
def test_auc_by_hand(scores: list[float], positive: list[bool], area: float | None) -> None:
    assert auc(scores, positive) == area


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    right = [score for score, positive in pairs if positive]
    wrong = [score for score, positive in pairs if not positive]
    found = auc([score for score, _ in pairs], [positive for _, positive in pairs])
    if not right or not wrong:
        assert found is None
        return
    wins = sum(1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong)
    assert found == pytest.approx(wins / (len(right) * len(wrong)))


def test_correlation_by_hand_and_where_it_is_not_defined() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert correlation([1, 2], [1, 2]) is None
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_rounds_figures_by_hand() -> None:
    seen = {"q1"}
    logs = [
        log("q1", "A", "A", reward=0.9, score=0.8, exploit=0.0, explore=0.0, likelihood=-1.0),
        log("q2", "C", "B", reward=0.01, score=0.2, exploit=2.0, explore=1.0, likelihood=-2.0),
        log(
            "q3", None, None, same_text=True, reward=0.5, score=0.5, exploit=1.0, explore=0.5, likelihood=-3.0
        ),
    ]
    found = filter_metrics(logs, ANSWERS, seen)
    assert seen == {"q1", "q2", "q3"}
    assert found["pairs"] == 3
    assert found["coverage"] == 0.75
    assert found["chosen_right"] == pytest.approx(1 / 3)
    assert found["letters_agree"] == pytest.approx(2 / 3)
    assert found["same_text"] == pytest.approx(1 / 3)
    assert found["auc_reward"] == found["auc_score"] == found["auc_likelihood"] == 1.0
    assert found["reward_mean"] == pytest.approx(1.41 / 3)
    assert found["reward_saturated"] == pytest.approx(1 / 3)
    assert found["explore_to_exploit"] == pytest.approx(0.5)
    assert "corr_paper_paired" not in found


def test_what_is_not_defined_is_left_out() -> None:
    assert filter_metrics([], ANSWERS, set()) == {"pairs": 0.0, "coverage": 0.0}
    alone = filter_metrics([log("q1", "A", "B")], ANSWERS, set())
    assert set(alone) == {"pairs", "coverage", "chosen_right", "letters_agree", "same_text"}


def test_gains_are_compared_where_both_are_known() -> None:
    logs = [log(f"q{n}", "A", paper_gain=float(n), paired_gain=float(2 * n)) for n in (1, 2, 3)]
    logs.append(log("q4", "A", paper_gain=-9.0))
    assert filter_metrics(logs, ANSWERS, set())["corr_paper_paired"] == pytest.approx(1.0)


def test_without_own_texts_nothing_is_said_of_agreement() -> None:
    found = filter_metrics([log("q1", "A"), log("q2", "C")], ANSWERS, set())
    assert found["chosen_right"] == 0.5
    assert not {"letters_agree", "same_text"} & found.keys()
    assert "letters_agree" in filter_metrics([log("q1", "A", "B")], ANSWERS, set())
