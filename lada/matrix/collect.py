"""From finished runs to files: what was measured, in long form, where each number is from, and a few answers.

``<name>.csv`` holds every metric, ``<name>-runs.csv`` one row per run with what it was made with,
``<name>-configs.json`` what was in run.yaml, and ``<name>-cases.jsonl`` test questions with what several arms
answered. Runs that are not finished are missing, never zero. Files that hold runs which would be lost are set
aside.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lada.errors import DataError
from lada.layers import read_run
from lada.matrix.cases import find_cases, write_cases
from lada.matrix.definition import Matrix
from lada.matrix.local import Run, find_runs, last_predictions
from lada.matrix.origins import configs_of, provenance_rows, write_provenance
from lada.matrix.rows import Row, write_rows
from lada.matrix.run_configs import write_configs
from lada.results import read_metrics
from lada.rundir import RunDir, sha256
from lada.tabular import read_csv

REPLACED = "replaced"
"""Folder beside the collected files for those that others took the place of."""
OF_A_GRID = (
    "accuracy",
    "accuracy_se",
    "accuracy_base",
    "accuracy_base_se",
    "unparsed_rate",
    "truncated_rate",
)


def collect_into(
    out: Path, name: str, matrix: Matrix, runs_folder: Path, *, remark: Callable[[str], None]
) -> str:
    """Write all files of a matrix; nothing is written where no run is finished.

    Args:
        remark: told what is missing, and of runs made with different code.

    Returns:
        What was written, for a person.

    Raises:
        DataError: two arms of one cell had different test questions.
    """
    runs = find_runs(matrix, runs_folder)
    finished = [run for run in runs if run.finished]
    for run in runs:
        if run not in finished:
            remark(f"missing, not finished: {run.cell}")
    if not finished:
        return f"{runs_folder} holds no finished run of {name}: nothing is written"
    made = provenance_rows(finished)
    if len(codes := sorted({row["code"] for row in made})) > 1:
        remark(f"{name}: its runs were made with {len(codes)} versions of the code: {', '.join(codes)}")
    rows = collect(matrix, finished)
    if aside := _set_aside(out, name, {run.folder.name for run in finished}):
        remark(f"{name}: what was collected before holds runs that are not here: it is in {aside} now")
    write_rows(rows, out / f"{name}.csv")
    write_provenance(made, out / f"{name}-runs.csv")
    write_configs(configs_of(finished), out / f"{name}-configs.json")
    cases = find_cases(matrix, finished)
    write_cases(cases, out / f"{name}-cases.jsonl")
    return f"{out / name}.csv: {len(rows)} rows of {len(finished)} of {len(runs)} runs"


def _set_aside(out: Path, name: str, runs: Collection[str]) -> Path | None:
    """Move files away that hold other runs than these, e.g. of another size or from another folder of runs.

    Returns:
        Where they are; None: nothing would have been lost.
    """
    recorded = out / f"{name}-runs.csv"
    if not recorded.is_file():
        return None
    with contextlib.suppress(DataError):
        columns, rows = read_csv(recorded)
        if "run_id" in columns and {row[columns.index("run_id")] for row in rows} <= set(runs):
            return None
    aside = out / REPLACED / f"{name}-{sha256(recorded.read_bytes())[:8]}"
    aside.mkdir(parents=True, exist_ok=True)
    # Last the file that says which runs there were: a kill on the way leaves it for the next attempt.
    for ending in (".csv", "-configs.json", "-cases.jsonl", "-runs.csv"):
        with contextlib.suppress(FileNotFoundError):
            (out / f"{name}{ending}").replace(aside / f"{name}{ending}")
    return aside


def collect(matrix: Matrix, runs: Sequence[Run]) -> list[Row]:
    """All metrics of finished runs, and their contrasts question by question.

    Of a grid accuracies and rates alone.

    Raises:
        DataError: two arms of one cell had different test questions.
    """
    finished = [run for run in runs if run.finished]
    rows = [row for run in finished for row in _rows(run)]
    if matrix.grid:
        rows = [row for row in rows if row.metric in OF_A_GRID]
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

    After the last round: ``paired/<other>`` is the mean over the party's questions of (right in arm) -
    (right in other), ``…_se`` its standard error, ``…_won`` and ``…_lost`` the questions that only one of
    them answered rightly, ``…_questions`` all.
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
        first, second = (
            {one.id: one.correct for one in last_predictions(which.folder, party.name)}
            for which in (run, twin)
        )
        mean, error = paired(first, second)
        found = {"": mean, "_se": error, **{f"_{key}": value for key, value in counts(first, second).items()}}
        for name, value in found.items():
            metric = f"paired/{twin.cell.arm}{name}"
            yield Row(*head, party.name, party.model, config.rounds, metric, value)


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


def counts(first: Mapping[str, bool], second: Mapping[str, bool]) -> dict[str, int]:
    """How many questions only the first answered rightly (``won``), only the second (``lost``), and all."""
    won = sum(first[name] and not second[name] for name in first)
    lost = sum(second[name] and not first[name] for name in first)
    return {"won": won, "lost": lost, "questions": len(first)}
