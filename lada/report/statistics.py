"""Means over seeds, tests of paired answers, correction for many tests. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy
from scipy.stats import binomtest

DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """Answers of two arms to the same questions, on one seed.

    Attributes:
        won: right in the first arm alone. lost: right in the second alone. questions: all.
    """

    won: int
    lost: int
    questions: int

    @property
    def tied(self) -> int:
        """Right in both, or wrong in both."""
        return self.questions - self.won - self.lost


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample's standard deviation (divisor n - 1), which one value does not have."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: is a question that one arm alone got as likely won as lost?

    Under the hypothesis ``won`` is binomial (won + lost, 1/2). With no such question the value is 1.
    """
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def pooled_mcnemar(strata: Sequence[Paired]) -> float:
    """`mcnemar` of the counts of all seeds together.

    Choice: counts are added over seeds (the paper names no test): each seed has test questions of its own, so
    that these are independent answers of one pair of methods. What varies between seeds beyond the questions
    is in the standard deviation, not in this test.
    """
    return mcnemar(sum(one.won for one in strata), sum(one.lost for one in strata))


def difference_interval(
    strata: Sequence[Paired], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a difference of accuracies, a fraction.

    Questions are drawn anew within each stratum (a seed): their gaps of +1, 0 and -1 are then multinomial in
    the counts. The difference is the mean over strata, as tables take it over seeds.

    Args:
        strata: one per seed, each with at least one question.
        seed: of the draws; the same counts give the same interval.
    """
    generator = numpy.random.default_rng(seed)
    total = numpy.zeros(draws)
    for one in strata:
        shares = numpy.array([one.won, one.lost, one.tied], dtype=float) / one.questions
        drawn = generator.multinomial(one.questions, shares, size=draws)
        total += (drawn[:, 0] - drawn[:, 1]) / one.questions
    tail = (1 - level) / 2
    low, high = numpy.quantile(total / len(strata), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the order given, none above 1.

    The k-th smallest of m is multiplied by m - k + 1, and is at least what the smaller ones came to
    (Holm 1979).
    """
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted
