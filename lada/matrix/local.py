"""Running a matrix on this machine: what is missing, some runs side by side; again = go on.

Each run is a process of its own (`python -m lada run`), so a failure or a kill concerns it alone, and its own
lease and commits make it resume.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lada.config import ORACLE
from lada.errors import ConfigError, DataError
from lada.ledger import Ledger
from lada.matrix.cells import Cell, cell_layers, expand, scenario_file, settings
from lada.matrix.definition import Matrix
from lada.method import load_method, make_plan
from lada.plan import read_plan
from lada.records import Prediction, read_jsonl
from lada.rundir import RunDir
from lada.runs import resolve_run

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Run:
    """A cell and its folder."""

    cell: Cell
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether every stage is committed and the driver has written what they measured."""
        run = RunDir(self.folder)
        if not run.run_yaml.is_file() or next(read_plan(run).pending(run.is_committed), None) is not None:
            return False
        return Ledger(run.ledger_jsonl).says_finished()


def find_runs(matrix: Matrix, runs: Path) -> list[Run]:
    """The folders of all cells, there or not.

    Raises:
        ConfigError: an arm's options are wrong, or it opens the sealed answers and its label does not say so.
    """
    found = []
    for cell in expand(matrix):
        config = resolve_run(cell_layers(matrix, cell, resolve_run))
        if config.opens_answers and ORACLE not in matrix.label(cell.arm):
            raise ConfigError(f"arm {cell.arm} opens the sealed answers: its label must say {ORACLE}")
        found.append(Run(cell, runs / config.run_id))
    return found


def last_predictions(folder: Path, party: str) -> list[Prediction]:
    """What a party answered to its test questions when it was last measured.

    Raises:
        DataError: it never was.
    """
    run = RunDir(folder)
    for group in reversed(list(read_plan(run).groups())):
        for stage in group:
            path = run.commit(stage) / PREDICTIONS
            if stage.party == party and path.is_file():
                return list(read_jsonl(Prediction, path))
    raise DataError(f"{folder}: no predictions of {party}")


def listing(matrix: Matrix, runs: Path) -> list[dict[str, Any]]:
    """All cells for whoever cannot resolve them, as JSON values: where they are, their run, how to make it.

    ``after`` names the runs that a cell's run replays, which have to be finished before.
    """
    found = find_runs(matrix, runs)
    by_cell = {run.cell: run for run in found}
    listed = []
    for run in found:
        cell = run.cell
        sources = [
            by_cell[replace(cell, arm=one)].folder.name for one in matrix.arms[cell.arm].replays.values()
        ]
        place = {"scenario": cell.scenario, "dataset": cell.dataset, "shots": cell.shots, "seed": cell.seed}
        listed.append(
            {
                "arm": cell.arm,
                "at": cell.at,
                **place,
                "run_id": run.folder.name,
                "finished": run.finished,
                "after": sources,
                "arguments": run_arguments(matrix, cell),
            }
        )
    return listed


def plans(matrix: Matrix, runs: Path) -> list[dict[str, Any]]:
    """Configuration and plan of every run that is not finished, as JSON values."""
    listed = []
    for run in find_runs(matrix, runs):
        if not run.finished:
            config = resolve_run(cell_layers(matrix, run.cell, resolve_run))
            plan = make_plan(config, load_method(config.method))
            content = {"config": config.model_dump(mode="json"), "plan": plan.model_dump(mode="json")}
            listed.append({"arm": run.cell.arm, "run_id": run.folder.name, **content})
    return listed


def run_matrix(
    matrix: Matrix, runs: Path, *, jobs: int, report: Callable[[str], None], amend: bool = False
) -> list[Run]:
    """Run what is missing, ``jobs`` at a time; replaying runs begin when the others of their seed ended.

    Returns:
        Runs that failed; what each said is in ``<run folder>.log``.
    """
    found = find_runs(matrix, runs)
    todo = [run for run in found if not run.finished]
    report(f"{len(found)} runs: {len(found) - len(todo)} finished, {len(todo)} to do, {jobs} at a time")
    began, done, failed = time.monotonic(), 0, list[Run]()
    runs.mkdir(parents=True, exist_ok=True)
    for wave in _waves(matrix, todo):
        with ThreadPoolExecutor(jobs) as pool:
            work = {pool.submit(_run_one, matrix, run, runs, amend): run for run in wave}
            for future in as_completed(work):
                run, done = work[future], done + 1
                if future.result():
                    failed.append(run)
                elapsed = time.monotonic() - began
                left = elapsed / done * (len(todo) - done)
                said = "FAILED" if run in failed else "done"
                report(f"{done}/{len(todo)} {said}: {run.cell} ({elapsed:.0f} s, about {left:.0f} s left)")
    return failed


def _waves(matrix: Matrix, todo: Sequence[Run]) -> list[list[Run]]:
    """Runs that may go side by side: a replaying run waits for those of its seed that replay nothing."""
    found = itertools.groupby(todo, lambda run: (run.cell.seed, bool(matrix.arms[run.cell.arm].replays)))
    return [list(group) for _, group in found]


def _run_one(matrix: Matrix, run: Run, runs: Path, amend: bool) -> int:
    command = [sys.executable, "-m", "lada", "run", "--runs", str(runs), *run_arguments(matrix, run.cell)]
    log = run.folder.with_name(f"{run.folder.name}.log")
    with log.open("ab") as file:
        done = subprocess.run(
            [*command, *(["--amend"] if amend else [])],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    return done.returncode


def run_arguments(matrix: Matrix, cell: Cell) -> list[str]:
    """What `lada run`, `lada init` and `jobs submit` are told to make a cell's run."""
    wanted = settings(matrix, cell, resolve_run)
    named = {
        "tier": matrix.tier,
        "size": matrix.size,
        "scenario": scenario_file(matrix, cell),
        "dataset": cell.dataset,
        "method": matrix.arms[cell.arm].method,
    }
    arguments = [part for key, value in named.items() for part in (f"--{key}", value)]
    return [*arguments, "--set", shlex.join(wanted)]
