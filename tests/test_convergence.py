"""The bilevel toy of the paper's Section V: gradient norms fall like 1/sqrt(T) (method page, property 20).

Upper problem: min over phi of sum log(1 + residual^2), smooth and not convex; lower problems: K strongly
convex quadratics, solved by ceil(log T) noisy gradient steps; the true gradient is known in closed form.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

SIZE, CLIENTS, NOISE = 10, 3, 1.0
HORIZONS = (256, 512, 1024, 2048, 4096)


class Bilevel:
    """theta_k*(phi) = B_k phi; f(phi) = sum over k, i of log(1 + (A_k theta_k - b_k)_i^2)."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.maps = rng.normal(size=(CLIENTS, SIZE, SIZE)) / math.sqrt(SIZE)
        self.mixes = rng.normal(size=(CLIENTS, SIZE, SIZE)) / math.sqrt(SIZE)
        self.targets = rng.normal(size=(CLIENTS, SIZE))
        self.curvature = np.linspace(1.0, 4.0, SIZE)

    def gradient(self, phi: np.ndarray, thetas: np.ndarray) -> np.ndarray:
        """Hyper-gradient at given lower solutions; exact where they are theta*(phi)."""
        residuals = np.einsum("kij,kj->ki", self.mixes, thetas) - self.targets
        outer = 2 * residuals / (1 + residuals**2)
        return np.einsum("kji,kmj,km->i", self.maps, self.mixes, outer)

    def solutions(self, phi: np.ndarray) -> np.ndarray:
        return np.einsum("kij,j->ki", self.maps, phi)


def mean_square_gradient(
    horizon: int, seed: int, *, bias: float = 0.0, step: float | None = None, scale: float = 1.0
) -> float:
    """G(T): mean over the run of the squared true gradient norm."""
    problem = Bilevel(seed)
    rng = np.random.default_rng([seed, horizon])
    phi = 3.0 * np.ones(SIZE)
    thetas = np.zeros((CLIENTS, SIZE))
    inner_rate = 2 / (problem.curvature.max() + problem.curvature.min())
    rate = step if step is not None else scale / math.sqrt(horizon)
    total = 0.0
    for _ in range(horizon):
        best = problem.solutions(phi)
        total += float((problem.gradient(phi, best) ** 2).sum())
        for _ in range(math.ceil(math.log(horizon))):
            noise = 0.1 * NOISE * rng.normal(size=thetas.shape)
            thetas = thetas - inner_rate * (problem.curvature * (thetas - best) + noise)
        estimate = problem.gradient(phi, thetas) + NOISE * rng.normal(size=SIZE) + bias
        phi = phi - rate * estimate
    return total / horizon


def curve(**changes: float) -> list[float]:
    return [np.mean([mean_square_gradient(t, seed, **changes) for seed in range(3)]) for t in HORIZONS]


def slope(values: list[float]) -> float:
    return float(np.polyfit(np.log(HORIZONS), np.log(values), 1)[0])


@pytest.fixture(scope="module")
def unbiased() -> list[float]:
    return curve()


def test_gradient_is_exact_at_the_lower_solutions() -> None:
    problem = Bilevel(0)
    phi = np.random.default_rng(1).normal(size=SIZE)

    def value(point: np.ndarray) -> float:
        residuals = np.einsum("kij,kj->ki", problem.mixes, problem.solutions(point)) - problem.targets
        return float(np.log1p(residuals**2).sum())

    numeric = [(value(phi + h) - value(phi - h)) / 2e-6 for h in 1e-6 * np.eye(SIZE)]
    assert np.allclose(problem.gradient(phi, problem.solutions(phi)), numeric, atol=1e-6)


def test_mean_square_gradient_falls_like_one_over_the_root_of_the_horizon(unbiased: list[float]) -> None:
    assert -0.75 <= slope(unbiased) <= -0.4, (slope(unbiased), unbiased)


def test_a_biased_selector_flattens_the_curve(unbiased: list[float]) -> None:
    biased = curve(bias=1.0)
    last = math.log(biased[-1] / biased[-2]) / math.log(2)
    assert last > math.log(unbiased[-1] / unbiased[-2]) / math.log(2) + 0.1
    assert biased[-1] > 2 * unbiased[-1]


def test_a_constant_step_has_a_floor(unbiased: list[float]) -> None:
    constant = curve(step=1 / math.sqrt(HORIZONS[0]))
    assert constant[-1] > unbiased[-1]
    assert abs(math.log(constant[-1] / constant[-2]) / math.log(2)) < 0.3
