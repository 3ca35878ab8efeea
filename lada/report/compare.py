"""Scores per cell of a matrix, their ranking, and what an arm gains over the best of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas

from lada.errors import DataError
from lada.report.layout import Comparison, Mark
from lada.report.results import Results, final
from lada.report.statistics import Paired, difference_interval, mean_std, pooled_mcnemar

COUNTS = ("won", "lost", "questions")
EQUAL = 1e-6
"""Gains closer than this, in points, are equal: the files hold 9 digits, a question counts far more."""


class Cell(NamedTuple):
    """What a number is of, seeds aside."""

    dataset: str
    scenario: str
    shots: int
    arm: str
    party: str
    at: str = ""

    def __str__(self) -> str:
        shots = "one-shot" if self.shots else "zero-shot"
        parts = (self.dataset, f"scenario {self.scenario}", shots, self.party, self.arm, self.at)
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Score:
    """Seed -> value, per cent or points; not empty."""

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean_std(list(self.values.values()))[0]

    @property
    def std(self) -> float | None:
        """Over seeds, divisor n - 1; None for one seed."""
        return mean_std(list(self.values.values()))[1]


def scores(rows: pandas.DataFrame) -> dict[Cell, Score]:
    """Scores in per cent of rows that hold one metric, one row per run and party."""
    found: dict[Cell, dict[int, float]] = {}
    for row in rows.itertuples(index=False):
        cell = Cell(row.dataset, row.scenario, row.shots, row.arm, row.party, row.at)
        found.setdefault(cell, {})[int(row.seed)] = 100 * float(row.value)
    return {cell: Score(dict(sorted(values.items()))) for cell, values in found.items()}


def mean_over(parts: Sequence[Score | None]) -> Score | None:
    """Seed by seed the mean of several parties' scores, of seeds that all have; None: there is no such."""
    there = [one for one in parts if one is not None]
    if not there or len(there) < len(parts):
        return None
    seeds = [seed for seed in there[0].values if all(seed in one.values for one in there)]
    values = {seed: sum(one.values[seed] for one in there) / len(there) for seed in seeds}
    return Score(values) if values else None


def ranks(rivals: Mapping[Cell, Score]) -> dict[Cell, Mark]:
    """Best and second best; equals share a mark, and beside two best there is no second.

    Choice: means that are printed alike, with one decimal, are equal. Only those with the most seeds among
    them are ranked, since seeds have questions of their own. One alone is the best of nothing and not marked.
    """
    most = max((len(one.values) for one in rivals.values()), default=0)
    means = {cell: float(f"{one.mean:.1f}") for cell, one in rivals.items() if len(one.values) == most}
    marks: dict[Cell, Mark] = {}
    if len(means) < 2:
        return marks
    for cell, mean in means.items():
        above = sum(other > mean for other in means.values())
        if above < 2:
            marks[cell] = "second" if above else "best"
    return marks


@dataclass(frozen=True)
class Improvement:
    """What an arm gains over the best baseline: points by seed, and the test of the same questions.

    Attributes:
        comparison, interval: None where some seed has no paired counts.
    """

    baseline: str
    score: Score
    comparison: Comparison | None
    interval: tuple[float, float] | None


def improvement(
    results: Results, accuracies: Mapping[Cell, Score], cell: Cell, baselines: Iterable[str]
) -> Improvement | None:
    """``cell`` against the best baseline there; None: one of the two was not measured.

    Choice: the gain is over the seeds that both have, which have the same questions; the best is the one with
    the smallest gain among those that share the most seeds, the first of equals.

    Raises:
        DataError: accuracies and paired counts contradict each other.
    """
    if cell not in accuracies:
        return None
    mine, gains = accuracies[cell].values, dict[str, dict[int, float]]()
    for arm in baselines:
        other = accuracies.get(cell._replace(arm=arm))
        shared = {} if other is None else {seed: other.values[seed] for seed in mine if seed in other.values}
        if shared:
            gains[arm] = {seed: mine[seed] - value for seed, value in shared.items()}
    if not gains:
        return None
    most = max(map(len, gains.values()))
    means = {arm: Score(found).mean for arm, found in gains.items() if len(found) == most}
    baseline = next(arm for arm, mean in means.items() if mean < min(means.values()) + EQUAL)
    return _tested(results, cell, baseline, gains[baseline])


def _tested(results: Results, cell: Cell, baseline: str, gaps: Mapping[int, float]) -> Improvement:
    strata = paired_counts(results, cell, baseline)
    if not gaps.keys() <= strata.keys():
        return Improvement(baseline, Score(gaps), None, None)
    used = [strata[seed] for seed in gaps]
    for one, (seed, gap) in zip(used, gaps.items(), strict=True):
        if abs(100 * (one.won - one.lost) / one.questions - gap) > 1e-4:
            raise DataError(
                f"{results.name}: {cell}, seed {seed}: accuracies and paired counts against {baseline} "
                "contradict each other; collect again"
            )
    low, high = difference_interval(used)
    won, lost, questions = (sum(getattr(one, name) for one in used) for name in COUNTS)
    comparison = Comparison(cell.arm, baseline, won, lost, questions, pooled_mcnemar(used))
    return Improvement(baseline, Score(gaps), comparison, (100 * low, 100 * high))


def paired_counts(results: Results, cell: Cell, other: str) -> dict[int, Paired]:
    """Seed -> how ``cell`` did against another arm, from whichever of the two the matrix compared."""
    there = _counts(results, cell, other)
    back = _counts(results, cell._replace(arm=other), cell.arm)
    return {**{seed: Paired(one.lost, one.won, one.questions) for seed, one in back.items()}, **there}


def _counts(results: Results, cell: Cell, other: str) -> dict[int, Paired]:
    by_name = {}
    for name in COUNTS:
        score = scores(_of_cell(results, f"paired/{other}_{name}", cell)).get(cell)
        by_name[name] = {} if score is None else score.values
    seeds = [seed for seed in by_name["won"] if all(seed in by_name[name] for name in COUNTS)]
    found = {seed: [round(by_name[name][seed] / 100) for name in COUNTS] for seed in seeds}
    return {seed: Paired(*numbers) for seed, numbers in found.items() if numbers[2] > 0}


def _of_cell(results: Results, metric: str, cell: Cell) -> pandas.DataFrame:
    rows = results.rows[results.rows["metric"] == metric]
    for name, value in cell._asdict().items():
        rows = rows[rows[name] == value]
    return final(rows, metric)
