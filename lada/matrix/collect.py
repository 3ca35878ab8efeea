"""From finished runs to two CSV files: what was measured, in long form, and where each number is from.

``<name>.csv`` holds every metric; ``<name>-runs.csv`` one row per run with what it was made with. Runs that
are not finished are missing, never zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lada.config import read_run
from lada.errors import DataError
from lada.matrix.cells import Matrix
from lada.matrix.local import Run
from lada.matrix.rows import Row, write_csv
from lada.plan import read_plan
from lada.records import Prediction, read_jsonl
from lada.results import read_metrics
from lada.rundir import RunDir, sha256

PREDICTIONS = "predictions.jsonl"


RUN_COLUMNS = (
    "arm",
    "at",
    "run_id",
    "git",
    "git_dirty",
    "amended_from",
    "code",
    "run_yaml",
    "packages",
    "weights",
    "machine",
)


def collect(matrix: Matrix, runs: Sequence[Run]) -> list[Row]:
    """All metrics of finished runs, and their contrasts question by question; of a grid the accuracies alone.

    Raises:
        DataError: two arms of one cell had different test questions.
    """
    finished = [run for run in runs if run.finished]
    rows = [row for run in finished for row in _rows(run)]
    if matrix.grid:
        rows = [row for row in rows if row.metric.startswith("accuracy") and "/" not in row.metric]
    return sorted([*rows, *_contrasts(matrix, finished)])


def _rows(run: Run) -> Iterator[Row]:
    cell = run.cell
    for row in read_metrics(RunDir(run.folder).metrics_csv):
        head = (
            row["tier"],
            cell.scenario,
            cell.dataset,
            cell.shots,
            cell.arm,
            cell.at,
            row["method"],
            cell.seed,
        )
        yield Row(*head, row["party"], row["model"], row["round"], row["metric"], row["value"])


def _contrasts(matrix: Matrix, runs: Sequence[Run]) -> Iterator[Row]:
    """Difference of right answers on the same test questions, in each cell that both arms have.

    ``paired/<other>`` is the mean over the party's questions of (right in arm) - (right in other) after the
    last round, ``paired/<other>_se`` its standard error from the questions' differences.
    """
    for first, second in matrix.contrasts:
        for run in (one for one in runs if one.cell.arm == first):
            twin = next((one for one in runs if one.cell == replace(run.cell, arm=second)), None)
            if twin is not None:
                yield from _contrast(run, twin)


def _contrast(run: Run, twin: Run) -> Iterator[Row]:
    cell, config = run.cell, read_run(run.folder)
    place = (cell.scenario, cell.dataset, cell.shots)
    head = (config.tier, *place, cell.arm, cell.at, config.method_label, cell.seed)
    for party in config.parties:
        gap = paired(last_predictions(run.folder, party.name), last_predictions(twin.folder, party.name))
        for name, value in zip(("", "_se"), gap, strict=True):
            metric = f"paired/{twin.cell.arm}{name}"
            yield Row(*head, party.name, party.model, config.rounds, metric, value)


def last_predictions(folder: Path, party: str) -> dict[str, bool]:
    """Test question -> whether the party answered it rightly when it was last measured.

    Raises:
        DataError: it never was.
    """
    run = RunDir(folder)
    for group in reversed(list(read_plan(run).groups())):
        for stage in group:
            path = run.commit(stage) / PREDICTIONS
            if stage.party == party and path.is_file():
                return {one.id: one.correct for one in read_jsonl(Prediction, path)}
    raise DataError(f"{folder}: no predictions of {party}")


def paired(first: Mapping[str, bool], second: Mapping[str, bool]) -> tuple[float, float]:
    """Mean of (right in the first) - (right in the second) over the same questions, and its standard error.

    Raises:
        DataError: they are not the same questions.
    """
    if first.keys() != second.keys():
        raise DataError("two arms of one cell answered different test questions")
    gaps = [int(first[name]) - int(second[name]) for name in sorted(first)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / max(1, len(gaps) - 1)
    return mean, math.sqrt(variance / len(gaps))


def provenance_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """What each finished run was made with, sorted by run id."""
    found = []
    for run in runs:
        if not run.finished:
            continue
        made = json.loads(RunDir(run.folder).provenance_json.read_text(encoding="utf-8"))
        packages = " ".join(f"{key}={value}" for key, value in sorted(made["packages"].items()))
        weights = sha256(json.dumps(made["weights"], sort_keys=True).encode())
        found.append(
            {
                "arm": run.cell.arm,
                "at": run.cell.at,
                "run_id": run.folder.name,
                "git": made["git"],
                "git_dirty": made["git_dirty"],
                "amended_from": " ".join(str(one.get("git")) for one in made.get("amended_from", [])),
                "code": made["code"][:16],
                "run_yaml": made["run_yaml"][:16],
                "packages": packages,
                "weights": weights[:16],
                "machine": made["machine"],
            }
        )
    return sorted(found, key=lambda row: row["run_id"])


def write_provenance(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row per run."""
    write_csv(path, RUN_COLUMNS, ([row[name] for name in RUN_COLUMNS] for row in rows))
