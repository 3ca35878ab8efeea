"""Where a number of a table is from: `make explain CELL="table2/scenario 1/zero-shot/client-1/lada"`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from lada.errors import ConfigError
from lada.layers import CONFIGS, read_yaml
from lada.matrix.run_configs import flat
from lada.report.arrange import LADA, parts_of
from lada.report.build import RATES, Builder
from lada.report.cell_names import find_cell, table_and_metric
from lada.report.compare import Cell
from lada.report.layout import IMPROVEMENT, MEAN, Entry, Table
from lada.report.render import number, std_text
from lada.report.results import PLACE, ROOT, RUN, load
from lada.report.tables import SPECS, table1

ACCURACY = "accuracy"
MADE_WITH = ("git", "git_dirty", "amended_from", "code", "packages", "weights", "machine", "size")
"""Columns of <matrix>-runs.csv that say what a run was made with."""


def explain(
    cell: str,
    tier: str,
    *,
    results: Path = ROOT / "results",
    configs: Path = CONFIGS,
    runs: Path = ROOT / "runs",
) -> str:
    """Value, seeds, runs, files, versions and differences in configuration behind a cell of a table.

    Args:
        cell: the table, then the cell's parts in the order of `NAMED`, see `lada.report.cell_names`; one of a
            single value may be absent.
        runs: folder of runs, for run.yaml where that was not collected.

    Raises:
        ConfigError: there is no such cell; names what the first wrong part can be.
        DataError: the table's results are missing or wrong.
    """
    name, *parts = [part.strip() for part in cell.split("/")]
    if name == "table1":
        return _model(table1(tier, configs), parts, configs)
    table, metric = table_and_metric(cell, name)
    builder = Builder(load(table, tier, results, configs), SPECS[table])
    arrangement = builder.arrangement
    cells = arrangement.cells if metric == ACCURACY else arrangement.measured
    found = find_cell(cell, cells, parts, arrangement.labels)
    return "\n".join(Explanation(builder, found, results / tier, runs, metric).lines())


def _model(table: Table, parts: Sequence[str], configs: Path) -> str:
    row, column = ((*parts, "", "")[place] for place in range(2))
    for part, legal, what in (
        (row, [key[0] for key in table.rows], "scenario"),
        (column, [key[-1] for key in table.columns], "column"),
    ):
        if part not in legal:
            raise ConfigError(f"table1: {what} '{part}' is none; legal: {', '.join(legal)}")
    entry = table.entries[(row,), ("", column)]
    file = configs / "scenarios" / f"{row.split()[1]}.yaml"
    said = [f"note: {table.footnotes[note]}" for note in entry.notes]
    return "\n".join([f"{entry.text} (the paper prints {entry.paper_text})", f"from {file}", *said])


@dataclass(frozen=True)
class Explanation:
    """Of one cell.

    Attributes:
        folder: results of the tier. runs: folder of runs.
        metric: accuracy, or one of `RATES`.
    """

    builder: Builder
    cell: Cell
    folder: Path
    runs: Path
    metric: str = ACCURACY

    @cached_property
    def table(self) -> Table:
        """The table in which the cell stands."""
        return self.builder.table() if self.metric == ACCURACY else self.builder.rate_table(self.metric)

    @property
    def entry(self) -> Entry:
        """The cell as the table has it."""
        return self.table.entries[self.builder.arrangement.place(self.cell)]

    @cached_property
    def arms(self) -> list[str]:
        """Arms whose runs are behind the number; of a difference two."""
        if self.cell.arm != IMPROVEMENT:
            return [self.cell.arm]
        gain = self.builder.improvements.get(self.cell)
        return [LADA] if gain is None else [LADA, gain.baseline]

    @cached_property
    def made(self) -> pandas.DataFrame:
        """Rows of <matrix>-runs.csv behind the number: of its seeds, or of all where it is missing."""
        found = self.builder.results.runs
        for name in (*PLACE, "at"):
            found = found[found[name] == getattr(self.cell, name)]
        found = found[found["arm"].isin(self.arms)]
        return found[found["seed"].isin(self.entry.seeds)] if self.entry.seeds else found

    def lines(self) -> Iterator[str]:
        """The explanation."""
        yield self.table.title
        yield "/".join([self.table.name, *(part for part in parts_of(self.cell).values() if part)])
        yield from self._value()
        yield from (f"note: {self.table.footnotes[note]}" for note in self.entry.notes)
        file = self.folder / self.builder.spec.name
        yield f"files: {file}.csv, {file}-runs.csv"
        for run in self.made.sort_values(RUN).to_dict("records"):
            yield from self._run(run)
        yield from self._differences()

    def _value(self) -> Iterator[str]:
        entry, unit = self.entry, "points" if self.entry.signed else "per cent"
        if entry.mean is None:
            wanted = ", ".join(map(str, self.builder.results.matrix.seeds))
            what = "a difference" if entry.signed else f"{self.metric.replace('_', ' ')} measured"
            yield f"measured: nothing; no finished run of seeds {wanted} has {what} here"
        else:
            value = f"{number(entry.mean, signed=entry.signed)} {std_text(entry)}".strip()
            mark = f"; {entry.mark} of those beside it" if entry.mark else ""
            of = "one seed" if len(entry.seeds) == 1 else f"mean of {len(entry.seeds)} seeds"
            yield f"measured: {value} {unit}, {of} after the last round{mark}"
        if entry.paper is not None:
            yield f"the paper prints: {number(entry.paper)}"
        if entry.difference is not None:
            yield f"measured minus printed: {number(entry.difference, signed=True)}"
        if entry.best_round is not None:
            yield f"each seed's best round: {number(entry.best_round)} {unit}"
        rates = zip(RATES.values(), (entry.unparsed, entry.truncated), strict=True)
        yield from (f"{what}: {number(rate)} per cent" for what, rate in rates if rate is not None)
        yield from self._test()
        for seed, measured in zip(entry.seeds, entry.values, strict=True):
            yield f"seed {seed}: {measured:.4f}"

    def _test(self) -> Iterator[str]:
        one = self.entry.comparison
        if len(self.arms) == 2:
            yield f"difference: {self.arms[0]} minus {self.arms[1]}, the best of the others"
        if one is not None and self.entry.interval is not None and self.entry.p is not None:
            low, high = self.entry.interval
            yield f"right in {one.arm} alone: {one.won}, in {one.baseline} alone: {one.lost}"
            yield f"questions of all seeds: {one.questions}"
            yield f"McNemar p {one.p:.4g}, {self.entry.p:.4g} after Holm's correction over the table"
            yield f"95 % interval: {low:+.2f} to {high:+.2f}"

    def _run(self, run: Mapping[Any, Any]) -> Iterator[str]:
        dirty = " with changes" if run.get("git_dirty") == "True" else ""
        yield f"run {run['run_id']} ({run['arm']}, seed {run['seed']})"
        yield f"  commit {run.get('git', 'unknown')}{dirty}, code {run.get('code', 'unknown')}"
        for line, value in self._csv_lines(run):
            yield f"  {self.builder.spec.name}.csv line {line}: {value}"
        path = self.runs / run["run_id"]
        there = "" if path.is_dir() else " (not there)"
        yield f"  {path}{there}"

    def _csv_lines(self, run: Mapping[Any, Any]) -> Iterator[tuple[int, str]]:
        """Lines of <matrix>.csv in which the run's values of the last round stand."""
        rows = self.builder.results.rows
        rows = rows[rows["metric"] == self.metric]
        for name in RUN:
            rows = rows[rows[name] == run[name]]
        if self.cell.party != MEAN:
            rows = rows[rows["party"] == self.cell.party]
        for party, of_party in rows.groupby("party", sort=True):
            last = of_party.loc[of_party["round"].idxmax()]
            yield last.name + 2, f"{party}, round {last['round']}, {self.metric} {last['value']:.9g}"

    def _differences(self) -> Iterator[str]:
        records = self.made.sort_values(RUN).to_dict("records")
        if len(records) < 2:
            return
        configs = [self._config(run["run_id"]) for run in records]
        made = [{name: str(run[name]) for name in MADE_WITH if name in run} for run in records]
        names = [f"{run['arm']} s{run['seed']}" for run in records]
        yield "made with, where the runs differ:"
        yield from _differing(names, made)
        there = [config for config in configs if config is not None]
        if len(there) == len(records):
            yield "run.yaml, where the runs differ:"
            yield from _differing(names, there)
        else:
            yield f"run.yaml: {len(there)} of {len(records)} are in {self.runs}, too few to compare"

    def _config(self, run_id: str) -> dict[str, str] | None:
        """What run.yaml says, as it was collected or else in the folder of runs; None: it is in neither."""
        collected = self.builder.results.made.get(run_id)
        if collected is None:
            path = self.runs / run_id / "run.yaml"
            collected = flat(read_yaml(path)) if path.is_file() else None
        if collected is None:
            return None
        return {key: json.dumps(value, ensure_ascii=False) for key, value in collected.items()}


def _differing(names: Sequence[str], found: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """``key: value (names), value (names)`` of all keys that are not the same everywhere."""
    keys = dict.fromkeys(key for one in found for key in one)
    differing = [key for key in keys if len({one.get(key) for one in found}) > 1]
    for key in differing:
        groups: dict[str, list[str]] = {}
        for name, one in zip(names, found, strict=True):
            groups.setdefault(one.get(key, "absent"), []).append(name)
        yield f"  {key}: " + ", ".join(f"{value} ({', '.join(who)})" for value, who in groups.items())
    if not differing:
        yield "  nowhere"
