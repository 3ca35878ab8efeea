"""Votes of private questions on synthetic ones, and what is made of them (WASP; baselines, section 5).

A private question votes for the synthetic questions that lie nearest to it and, in a histogram of their own,
for those that lie farthest. Only histograms leave a client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Histogram = NDArray[np.float64]
Rows = NDArray[np.float32]


def histograms(distances: NDArray[np.floating], depth: int) -> tuple[Histogram, Histogram]:
    """Near and far votes of private questions: the q-th nearest gets 2^-q (q from 0), the q-th farthest too.

    Every private question gives 2 - 2^-(m-1) votes to each histogram, m the smaller of ``depth`` and the
    number of synthetic questions. Choice: of equally distant ones the one that was published first is
    preferred, on both sides.

    Args:
        distances: [private questions, synthetic questions].
        depth: Q, how many of each side get votes.

    Returns:
        ``near`` and ``far`` [synthetic questions], sums over the private questions.
    """
    count = distances.shape[1]
    depth = min(depth, count)
    near, far = np.zeros(count), np.zeros(count)
    for place in range(depth):
        weight = 2.0**-place
        np.add.at(near, np.argsort(distances, axis=1, kind="stable")[:, place], weight)
        np.add.at(far, np.argsort(-distances, axis=1, kind="stable")[:, place], weight)
    return near, far


def cosine_distances(rows: Rows, others: Rows) -> NDArray[np.float64]:
    """1 - cosine [rows, others] of vectors of length 1."""
    similar = rows.astype(np.float64) @ others.astype(np.float64).T
    # Rounded, so that what is equal but for the order of a sum ties and is ranked by position.
    return np.round(1.0 - similar, 9)


def votes_of_one(depth: int) -> float:
    """What one private question adds to a histogram in all: 2 - 2^-(Q-1)."""
    return 2.0 - 2.0 ** -(depth - 1) if depth else 0.0


def noise_sigma(depth: int, *, epsilon: float, delta: float, releases: int, parties: int = 1) -> float:
    """Standard deviation of the Gaussian noise on every entry of both histograms.

    sigma = D * sqrt(2 ln(1.25 / delta)) * sqrt(releases) / (epsilon * sqrt(parties)), where
    D = 2 * (2 - 2^-(Q-1)) is what one question can add to the two histograms. D is the sum of what changes;
    the norm that a Gaussian needs is at most sqrt(8/3) where one question is added or left out, sqrt(16/3)
    where one is replaced. So (epsilon, delta) holds for all releases together, also at epsilon = 4, which
    the classical proof (epsilon < 1) does not cover: test_voting checks it by the exact formula.

    Args:
        depth: Q.
        releases: how many pairs of histograms a client sends in the run.
        parties: clients whose noise adds up before anyone sees a sum; 1 where the receiver sees each
            client's own histograms, as it does in this exchange.
    """
    if math.isinf(epsilon):
        return 0.0
    change = 2.0 * votes_of_one(depth)
    return change * math.sqrt(2 * math.log(1.25 / delta) * releases / parties) / epsilon


def ranked(histogram: NDArray[np.floating]) -> list[int]:
    """Positions by falling votes, equal ones in the order of publication.

    Raw sums, never shares: with noise the total may be negative, and dividing by it would turn the order
    around (baselines, section 5, pitfall 1).
    """
    return [int(place) for place in np.argsort(-np.asarray(histogram, dtype=np.float64), kind="stable")]


def contrast(near: Histogram, far: Histogram, size: int) -> tuple[list[int], list[int]]:
    """The questions that stand ready as good and as bad examples: the top of each histogram.

    Choice: no question is both (good goes first), and neither side takes more than half of all.

    Args:
        near, far: sums over the clients [synthetic questions].
        size: S, how many of each.
    """
    size = min(size, len(near) // 2)
    good = ranked(near)[:size]
    bad = [place for place in ranked(far) if place not in good][:size]
    return good, bad


def top_share(near: NDArray[np.floating], count: int, share: float) -> list[int]:
    """Positions of the share of ``count`` questions with the most near votes, in the order of publication.

    Questions that nobody has voted on yet come last.

    Args:
        near: votes on the first len(near) of the ``count`` questions.
    """
    order = [*ranked(near), *range(len(near), count)]
    return sorted(order[: math.floor(share * count + 0.5)])


def boost_base(num_samples: int, epochs: int) -> float:
    """The base of `boosted`: 1 + sqrt(2 ln(N / E)), 1 where there are no more samples than epochs."""
    return 1.0 + math.sqrt(2.0 * max(0.0, math.log(max(1, num_samples) / epochs)))


def boosted(
    weights: Sequence[float], probabilities: Sequence[float], missed: Sequence[bool], *, base: float
) -> list[float]:
    """Self-boosted sample weights: w * base^-(1 - p) where the answer was missed; the sum stays as it was.

    Args:
        weights: of the samples so far.
        probabilities: that the small model gives the stated letter. missed: it prefers another letter.
        base: see `boost_base`; 1 changes nothing.
    """
    raw = [
        weight * base ** -(1.0 - probability) if wrong else weight
        for weight, probability, wrong in zip(weights, probabilities, missed, strict=True)
    ]
    total = sum(raw)
    return [value * sum(weights) / total for value in raw]
