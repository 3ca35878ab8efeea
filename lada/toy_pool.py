"""What selection does to a gradient: the real filter on a pool of toy samples (paper, Sections IV-B and V).

Theorem 1 takes a selected batch's gradient for an unbiased one of bounded variance. Here every sample has a
known gradient, so both can be looked at: how far the mean gradient of the selected samples is from the
pool's, and how much theirs vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lada.selection.sample_filter import FilterOptions, FilterTuple, SampleFilter
from lada.tabular import write_csv

Array = NDArray[np.float64]

SAMPLES, FEATURES, SIZE, SHARE, ROUNDS = 400, 16, 10, 0.5, 3
SEEDS = (0, 1, 2)
SELECTORS = ("random", "filter", "oracle")


@dataclass(frozen=True)
class Outcome:
    """One selector's choice in the last round.

    Attributes:
        bias: |mean gradient of the selected - that of the pool| / |that of the pool|.
        cosine: of the angle between both.
        variance: mean squared distance of the selected gradients to their mean, over that of the pool.
        reward: mean reward of the selected.
    """

    selector: str
    seed: int
    bias: float
    cosine: float
    variance: float
    reward: float


class Pool:
    """Samples with features x [SAMPLES, FEATURES] and gradients g = mean + W x + noise [SAMPLES, SIZE].

    A sample's reward is the sigmoid of how much a step along its gradient lowers the pool's objective, to
    first order: of the cosine between its gradient and the pool's. Choice: the features tell half of a
    gradient's variance, and deviations are three times the mean in length.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.features = rng.normal(size=(SAMPLES, FEATURES))
        told = self.features @ rng.normal(size=(FEATURES, SIZE)) / np.sqrt(FEATURES)
        noise = rng.normal(size=(SAMPLES, SIZE))
        mean = rng.normal(size=SIZE)
        mean /= np.linalg.norm(mean)
        self.gradients: Array = mean + 3 * (told + noise) / np.sqrt(2 * SIZE)
        self.mean: Array = self.gradients.mean(0)
        self.rewards: Array = 1 / (1 + np.exp(-cosine(self.gradients, self.mean)))

    def outcome(self, selector: str, seed: int, chosen: NDArray[np.intp]) -> Outcome:
        """What a choice of samples does to bias, variance and reward."""
        mine = self.gradients[chosen]
        mean = mine.mean(0)
        return Outcome(
            selector,
            seed,
            bias=float(np.linalg.norm(mean - self.mean) / np.linalg.norm(self.mean)),
            cosine=float(cosine(mean, self.mean)),
            variance=spread(mine) / spread(self.gradients),
            reward=float(self.rewards[chosen].mean()),
        )


def cosine(vectors: Array, other: Array) -> Array:
    """Of the angle between each of ``vectors`` [..., SIZE] and ``other`` [SIZE]."""
    found: Array = vectors @ other / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(other)
    return found


def spread(gradients: Array) -> float:
    """Mean squared distance to the mean."""
    return float(((gradients - gradients.mean(0)) ** 2).sum(1).mean())


def select(selector: str, pool: Pool, seed: int) -> NDArray[np.intp]:
    """Indexes of what ``random``, LaDa's ``filter`` (taught by what it chose) or the ``oracle`` takes."""
    count = int(SHARE * SAMPLES)
    rng = np.random.default_rng([seed, 1])
    if selector == "random":
        return rng.permutation(SAMPLES)[:count]
    if selector == "oracle":
        return np.argsort(-pool.rewards, kind="stable")[:count]
    features = pool.features.astype(np.float32)
    learned = SampleFilter(FEATURES, FilterOptions(), seed=seed)
    chosen = rng.permutation(SAMPLES)[:count]
    for number in range(1, ROUNDS + 1):
        exploit = learned.score(features).exploit
        told = ((i, float(pool.rewards[i]), float(exploit[i])) for i in chosen)
        learned.update([FilterTuple(str(i), features[i], reward, guess, number) for i, reward, guess in told])
        chosen = np.argsort(-learned.score(features).total, kind="stable")[:count]
    return chosen


def measure(seeds: Sequence[int] = SEEDS) -> list[Outcome]:
    """Outcomes of all selectors on a pool per seed; computed on one thread, for the same bits everywhere."""
    torch.set_num_threads(1)
    return [
        pool.outcome(selector, seed, select(selector, pool, seed))
        for selector in SELECTORS
        for seed, pool in ((seed, Pool(seed)) for seed in seeds)
    ]


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """A row per selector and seed."""
    rows = ((*astuple(one)[:2], *(f"{value:.4f}" for value in astuple(one)[2:])) for one in outcomes)
    write_csv(path, [field.name for field in fields(Outcome)], rows)
