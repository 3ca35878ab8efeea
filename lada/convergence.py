"""The bilevel toy of the paper's Section V: gradient norms fall like 1/sqrt(T), and two controls that do not.

Upper problem: min over phi of sum log(1 + residual^2), smooth and not convex; lower problems: K strongly
convex quadratics, solved by ceil(log T) noisy gradient steps; the true gradient is known in closed form. It
shows the rate of Theorem 1 under the theorem's own assumptions: selection of samples is not part of it (see
`lada.toy_pool` for what that does to them), nor are networks or texts.

    python -m lada.convergence --out results/convergence.csv

writes one row per horizon, control and seed, ``…-slopes.csv`` with a fitted slope per control, and beside
them ``toy-pool.csv``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lada import toy_pool
from lada.errors import DataError, exit_code
from lada.tabular import read_records, write_csv

Array = NDArray[np.float64]

SIZE, CLIENTS, NOISE = 10, 3, 1.0
HORIZONS = (256, 512, 1024, 2048, 4096)
SEEDS = (0, 1, 2)
COLUMNS = ("control", "horizon", "seed", "mean_square_gradient")
SLOPE_COLUMNS = ("control", "slope", "from_horizon", "slope_of_all", "last_doubling")
"""``slope`` is fitted from ``from_horizon`` on, see `upper_half`; it is the one that the figure shows."""


@dataclass(frozen=True)
class Control:
    """One way to run the toy.

    Attributes:
        bias: constant added to every coordinate of the gradient's estimate; what a biased selector would do.
        horizon_of_step: None: the step is 1/sqrt(T); a number H: 1/sqrt(H) at every T.
    """

    name: str
    bias: float = 0.0
    horizon_of_step: int | None = None

    def step(self, horizon: int) -> float:
        """Step size of the upper problem in a run of ``horizon`` steps."""
        return 1 / math.sqrt(self.horizon_of_step or horizon)


CONTROLS = (
    Control("unbiased"),
    Control("biased", bias=1.0),
    Control("constant-step", horizon_of_step=HORIZONS[0]),
)
"""The theorem's case first; the others break one assumption each and must not show its rate."""


class Bilevel:
    """theta_k*(phi) = B_k phi; f(phi) = sum over k, i of log(1 + (A_k theta_k - b_k)_i^2)."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.maps = rng.normal(size=(CLIENTS, SIZE, SIZE)) / math.sqrt(SIZE)
        self.mixes = rng.normal(size=(CLIENTS, SIZE, SIZE)) / math.sqrt(SIZE)
        self.targets = rng.normal(size=(CLIENTS, SIZE))
        self.curvature = np.linspace(1.0, 4.0, SIZE)

    def value(self, phi: Array) -> float:
        """The upper objective at the exact lower solutions. phi: [SIZE]."""
        return float(np.log1p(self._residuals(self.solutions(phi)) ** 2).sum())

    def gradient(self, thetas: Array) -> Array:
        """[SIZE] hyper-gradient at lower solutions [CLIENTS, SIZE]; exact where they are theta*(phi)."""
        residuals = self._residuals(thetas)
        outer = 2 * residuals / (1 + residuals**2)
        found: Array = np.einsum("kji,kmj,km->i", self.maps, self.mixes, outer)
        return found

    def solutions(self, phi: Array) -> Array:
        """[CLIENTS, SIZE] minima of the lower problems at phi [SIZE]."""
        found: Array = np.einsum("kij,j->ki", self.maps, phi)
        return found

    def _residuals(self, thetas: Array) -> Array:
        found: Array = np.einsum("kij,kj->ki", self.mixes, thetas) - self.targets
        return found


def mean_square_gradient(horizon: int, seed: int, control: Control = CONTROLS[0]) -> float:
    """G(T): mean over a run's T steps of the squared norm of the true gradient (Theorem 1).

    Choice: 10 dimensions, 3 clients, noise of standard deviation 1 in the gradient and 0.1 in the lower
    steps, start at 3 in every coordinate, inner step 2 / (largest + smallest curvature).
    """
    problem = Bilevel(seed)
    rng = np.random.default_rng([seed, horizon])
    phi = 3.0 * np.ones(SIZE)
    thetas = np.zeros((CLIENTS, SIZE))
    inner_step = 2 / (problem.curvature.max() + problem.curvature.min())
    step, total = control.step(horizon), 0.0
    for _ in range(horizon):
        best = problem.solutions(phi)
        total += float((problem.gradient(best) ** 2).sum())
        for _ in range(math.ceil(math.log(horizon))):
            noise = 0.1 * NOISE * rng.normal(size=thetas.shape)
            thetas = thetas - inner_step * (problem.curvature * (thetas - best) + noise)
        phi = phi - step * (problem.gradient(thetas) + NOISE * rng.normal(size=SIZE) + control.bias)
    return total / horizon


@dataclass(frozen=True, order=True)
class Point:
    """G(T) of one run."""

    control: str
    horizon: int
    seed: int
    value: float


def measure(
    controls: Sequence[Control] = CONTROLS,
    horizons: Sequence[int] = HORIZONS,
    *,
    seeds: Sequence[int] = SEEDS,
) -> list[Point]:
    """G(T) of all combinations, controls in their order."""
    return [
        Point(control.name, horizon, seed, mean_square_gradient(horizon, seed, control))
        for control in controls
        for horizon in horizons
        for seed in seeds
    ]


def means(points: Iterable[Point], control: str) -> dict[int, float]:
    """Horizon -> mean of G over seeds, horizons ascending."""
    mine = [point for point in points if point.control == control]
    return {
        horizon: float(np.mean([point.value for point in mine if point.horizon == horizon]))
        for horizon in sorted({point.horizon for point in mine})
    }


def slope(curve: Mapping[int, float]) -> float:
    """Least-squares slope of log G over log T."""
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def upper_half(curve: Mapping[int, float]) -> dict[int, float]:
    """The larger horizons, the middle one included: where the start no longer counts."""
    return dict(list(curve.items())[len(curve) // 2 :])


def last_doubling(curve: Mapping[int, float]) -> float:
    """Slope between the two largest horizons."""
    return slope(dict(list(curve.items())[-2:]))


def write(points: Sequence[Point], path: Path) -> Path:
    """The points as CSV, and beside them ``<name>-slopes.csv``, whose path is returned."""
    write_csv(path, COLUMNS, ((p.control, p.horizon, p.seed, f"{p.value:.9g}") for p in points))
    slopes = path.with_name(f"{path.stem}-slopes.csv")
    rows = []
    for control in dict.fromkeys(point.control for point in points):
        curve = means(points, control)
        upper = upper_half(curve)
        fitted = (f"{slope(upper):.4f}", min(upper), f"{slope(curve):.4f}", f"{last_doubling(curve):.4f}")
        rows.append((control, *fitted))
    write_csv(slopes, SLOPE_COLUMNS, rows)
    return slopes


def read(path: Path) -> list[Point]:
    """What `write` wrote.

    Raises:
        DataError: the file is not there, has other columns, or a word for a number.
    """
    return [_point(row, f"{path}, line {line}") for line, row in enumerate(read_records(path, COLUMNS), 2)]


def _point(row: Mapping[str, str], where: str) -> Point:
    try:
        horizon, seed = int(row["horizon"]), int(row["seed"])
        return Point(row["control"], horizon, seed, float(row["mean_square_gradient"]))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the toys and write their files; prints the slopes, and what selection does to a gradient."""
    parser = argparse.ArgumentParser(prog="python -m lada.convergence", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("results") / "convergence.csv")
    slopes = write(measure(), parser.parse_args(arguments).out)
    sys.stdout.write(slopes.read_text(encoding="utf-8"))
    pool = slopes.with_name("toy-pool.csv")
    toy_pool.write(toy_pool.measure(), pool)
    sys.stdout.write(f"\n{pool.read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
