"""A matrix's collected results, checked: how tables, figures and explanations read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from lada.errors import DataError
from lada.layers import CONFIGS
from lada.matrix.cells import expand
from lada.matrix.definition import Matrix, read_matrix
from lada.matrix.rows import COLUMNS
from lada.matrix.run_configs import read_configs
from lada.tabular import read_csv

ROOT = Path(__file__).parents[2]
PLACE = ["scenario", "dataset", "shots"]
RUN = ["arm", "at", *PLACE, "seed"]
"""What tells one run of a matrix from another."""
SERIES = [*RUN, "party"]
"""What a value belongs to, rounds and metrics aside."""
RUN_COLUMNS = [*RUN, "run_id"]
"""Columns of <matrix>-runs.csv that are needed here; there may be more."""
INTEGERS = ("shots", "seed", "round")
FRACTIONS = ("accuracy", "accuracy_base", "unparsed_rate", "truncated_rate")


@dataclass(frozen=True)
class Results:
    """What `make collect` left of one matrix.

    Attributes:
        rows: columns `lada.matrix.rows.COLUMNS`; numbers are numbers; a value that is not finite is NaN.
        runs: one row per run, texts but for shots and seed; columns `RUN_COLUMNS` and more.
        made: run id -> dotted key of run.yaml -> value, where that was collected.
        configs: from which the matrix was read, at the size of its runs.
    """

    name: str
    tier: str
    matrix: Matrix
    rows: pandas.DataFrame
    runs: pandas.DataFrame
    made: Mapping[str, Mapping[str, Any]]
    configs: Path = CONFIGS

    @property
    def sizes(self) -> list[str]:
        """``size quick`` of the runs; empty where that was not collected."""
        return [f"size {size}" for size in _sizes(self.runs)]


def load(name: str, tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> Results:
    """Results of one matrix.

    Raises:
        ConfigError: there is no such matrix, or it is of another tier.
        DataError: a file is missing, has other columns, a cut line or a word for a number; rows are
            of another tier; two runs claim one cell; a row has no run or is of no cell of the matrix; runs
            are of several sizes; seeds of a cell ended in different rounds; an accuracy is no fraction.
    """
    path, runs_path = (results / tier / f"{name}{ending}.csv" for ending in ("", "-runs"))
    matrix = read_matrix(name, configs, tier=tier)
    rows, runs = _rows(path), _runs(runs_path)
    _check_tier(rows, tier, path)
    _check_single(rows, [*SERIES, "round", "metric"], path)
    _check_single(runs, RUN, runs_path)
    _check_traced(rows, runs, path, runs_path)
    _check_known(matrix, rows, path)
    sizes = _check_one_size(runs, runs_path)
    _check_fractions(rows, path)
    _check_same_end(rows, path)
    if sizes:
        matrix = read_matrix(name, configs, tier=tier, size=sizes[0])
    made = read_configs(path.with_name(f"{name}-configs.json"))
    return Results(name, tier, matrix, rows, runs, made, configs)


def final(rows: pandas.DataFrame, metric: str = "accuracy") -> pandas.DataFrame:
    """Values of the last round: one row per `SERIES`, sorted by it; columns as of ``rows``.

    A last round whose value is NaN is missing: no earlier round stands in for it.
    """
    mine = rows[rows["metric"] == metric].sort_values("round")
    last = mine.groupby(SERIES, sort=False).tail(1)
    return _sorted(last[last["value"].notna()])


def best_round(rows: pandas.DataFrame, metric: str = "accuracy") -> pandas.DataFrame:
    """As `final`, but the highest value of rounds from 1 on, or of round 0 where there are no others.

    Choosing a round by test accuracy flatters: for comparison with a paper that may have done so, not for
    ranking.
    """
    mine = rows[(rows["metric"] == metric) & rows["value"].notna()]
    later = mine["round"] > 0
    has_later = later.groupby([mine[name] for name in SERIES]).transform("any")
    mine = mine[later | ~has_later].sort_values(["value", "round"], ascending=[False, True])
    return _sorted(mine.groupby(SERIES, sort=False).head(1))


def _sorted(rows: pandas.DataFrame) -> pandas.DataFrame:
    return rows.sort_values(SERIES).reset_index(drop=True)


def _rows(path: Path) -> pandas.DataFrame:
    frame = _read(path)
    if list(frame.columns) != list(COLUMNS):
        raise DataError(f"{path}: columns {list(frame.columns)}, expected {list(COLUMNS)}")
    for name in INTEGERS:
        frame[name] = _numbers(frame, name, path).astype("int64")
    frame["value"] = _numbers(frame, "value", path, nan=True)
    return frame


def _runs(path: Path) -> pandas.DataFrame:
    frame = _read(path)
    absent = [name for name in RUN_COLUMNS if name not in frame.columns]
    if absent:
        raise DataError(f"{path}: no columns {absent}; `make collect` writes them")
    for name in ("shots", "seed"):
        frame[name] = _numbers(frame, name, path).astype("int64")
    return frame


def _read(path: Path) -> pandas.DataFrame:
    columns, rows = read_csv(path)
    return pandas.DataFrame(rows, columns=list(columns), dtype=object)


def _numbers(frame: pandas.DataFrame, name: str, path: Path, *, nan: bool = False) -> pandas.Series:
    """A column as numbers; with ``nan``, what is not finite becomes NaN."""
    found = []
    for number, text in enumerate(frame[name], start=2):
        try:
            value = float(text) if nan else float(int(text))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {name} '{text}' is no number") from error
        found.append(value if math.isfinite(value) else math.nan)
    return pandas.Series(found, index=frame.index, dtype="float64")


def _check_tier(rows: pandas.DataFrame, tier: str, path: Path) -> None:
    for index, found in rows["tier"].items():
        if found != tier:
            raise DataError(f"{path}, line {index + 2}: tier {found} among results of tier {tier}")


def _check_single(frame: pandas.DataFrame, key: Sequence[str], path: Path) -> None:
    again = frame[frame.duplicated(list(key), keep=False)]
    if len(again):
        raise DataError(f"{path}: two runs claim one cell: {_place(again.iloc[0], key)}")


def _check_traced(rows: pandas.DataFrame, runs: pandas.DataFrame, path: Path, runs_path: Path) -> None:
    known = set(runs[RUN].itertuples(index=False, name=None))
    for row in rows[RUN].drop_duplicates().itertuples(index=False, name=None):
        if row not in known:
            place = ", ".join(f"{name} {value}" for name, value in zip(RUN, row, strict=True) if value != "")
            raise DataError(f"{path}: no run in {runs_path.name} for {place}; `make collect` writes both")


def _check_known(matrix: Matrix, rows: pandas.DataFrame, path: Path) -> None:
    """Rows of a matrix that has changed since would be left out of tables without a word."""
    key = ["arm", "at", *PLACE]
    known = {(cell.arm, cell.at, cell.scenario, cell.dataset, cell.shots) for cell in expand(matrix)}
    for row in rows[key].drop_duplicates().itertuples(index=False, name=None):
        if row not in known:
            raise DataError(f"{path}: the matrix has no {_named(key, row)}; collect again")


def _sizes(runs: pandas.DataFrame) -> list[str]:
    return sorted(set(runs.get("size", ())))


def _check_one_size(runs: pandas.DataFrame, path: Path) -> list[str]:
    """The size of all runs, as the one item; none where there are no runs, or it was not collected."""
    sizes = _sizes(runs)
    if len(sizes) > 1:
        raise DataError(f"{path}: runs of sizes {' and '.join(sizes)}; a table is of one")
    return sizes


def _check_fractions(rows: pandas.DataFrame, path: Path) -> None:
    wrong = rows[rows["metric"].isin(FRACTIONS) & ((rows["value"] < 0) | (rows["value"] > 1))]
    for index, row in wrong.iterrows():
        value = f"{row['metric']} {row['value']:g}"
        raise DataError(f"{path}, line {index + 2}: {value} is no fraction from 0 to 1")


def _check_same_end(rows: pandas.DataFrame, path: Path) -> None:
    """Seeds that ran for different numbers of rounds are different configurations."""
    mine = rows[rows["metric"] == "accuracy"]
    last = mine.groupby(SERIES, sort=True)["round"].max().reset_index()
    key = [name for name in SERIES if name != "seed"]
    for cell, group in last.groupby(key, sort=True):
        if group["round"].nunique() > 1:
            ends = ", ".join(
                f"seed {seed} round {end}" for seed, end in zip(group["seed"], group["round"], strict=True)
            )
            raise DataError(f"{path}: {_named(key, cell)}: runs of different length in one cell: {ends}")


def _place(row: pandas.Series, key: Sequence[str]) -> str:
    return _named(key, [row[name] for name in key])


def _named(key: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(key, values, strict=True) if value != "")
