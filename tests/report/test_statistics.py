"""Statistics against values computed by hand, and against slow counting where a hand is too slow."""

from __future__ import annotations

import itertools
import math

import pytest

from lada.report.statistics import (
    Paired,
    difference_interval,
    holm,
    mcnemar,
    mean_std,
    pooled_mcnemar,
)


def test_the_deviation_is_the_samples_and_one_seed_has_none() -> None:
    assert mean_std([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert mean_std([5.0]) == (5.0, None)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (6, 1, 2 * (1 + 7) / 128),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_the_binomials_two_tails(won: int, lost: int, p: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p, abs=1e-12)


def test_seeds_are_pooled_by_adding_counts() -> None:
    assert pooled_mcnemar([Paired(6, 1, 50), Paired(2, 1, 80)]) == pytest.approx(mcnemar(8, 2))


def test_holm_by_hand() -> None:
    # 0.01 * 4; 0.02 * 3 = 0.06; 0.03 * 2 = 0.06; 0.9 * 1
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04]), "ties get the same"
    assert holm([]) == []


def test_the_interval_is_that_of_all_resamples_of_three_questions() -> None:
    """Gaps +1, 0, -1: all 27 resamples can be listed; a 50 % interval is where their quartiles are."""
    means = sorted(sum(drawn) / 3 for drawn in itertools.product((1, 0, -1), repeat=3))
    low, high = means[27 // 4], means[-1 - 27 // 4]
    assert (low, high) == (-1 / 3, 1 / 3)
    found = difference_interval([Paired(1, 1, 3)], level=0.5)
    assert found == pytest.approx((low, high))


def test_the_interval_agrees_with_the_normal_one_where_questions_are_many() -> None:
    strata = [Paired(120, 60, 1000), Paired(100, 90, 500)]
    gaps = [60 / 1000, 10 / 500]
    variances = [(180 / 1000 - gaps[0] ** 2) / 1000, (190 / 500 - gaps[1] ** 2) / 500]
    middle, error = sum(gaps) / 2, math.sqrt(sum(variances)) / 2
    low, high = difference_interval(strata)
    assert low == pytest.approx(middle - 1.96 * error, abs=0.001)
    assert high == pytest.approx(middle + 1.96 * error, abs=0.001)


def test_the_interval_is_the_same_every_time_and_a_point_without_differences() -> None:
    strata = [Paired(5, 3, 40)]
    assert difference_interval(strata) == difference_interval(strata)
    assert difference_interval(strata) != difference_interval(strata, seed=1)
    assert difference_interval([Paired(0, 0, 40)]) == (0.0, 0.0)
    assert difference_interval([Paired(4, 0, 4)]) == (1.0, 1.0)
