"""The runs of a matrix as they stand: which they are, and how far each is.

Which runs a matrix means is told by `lada matrix --json`, in the image or, before that is built and without a
cluster, in this environment: resolving a configuration needs the methods, and those need torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.cluster import Cluster
from jobs.host import CommandError, ask_lada
from jobs.snapshot import look
from lada.errors import LadaError
from lada.rundir import RunDir

CellState = Literal["done", "running", "queued", "failed", "begun", "to do"]
WORDS: Mapping[str, CellState] = {
    "running": "running",
    "pending": "queued",
    "failed": "failed",
    "paused": "begun",
    "done": "begun",  # all committed, but no driver has written what was measured
}


@dataclass(frozen=True)
class CellView:
    """A run of a matrix at one moment.

    Attributes:
        state: ``begun``: some stages are committed and nobody is at work.
        seconds: that its stages took, of a run that is done.
        after: ids of runs that have to be finished before it can begin.
        arguments: what `lada init` is told to make it.
        matrix: that it belongs to, of a list of them; two of them may have the same run.
    """

    arm: str
    place: tuple[str, str, int]
    seed: int
    at: str
    run_id: str
    state: CellState
    seconds: float
    after: tuple[str, ...]
    arguments: tuple[str, ...]
    matrix: str


def look_at_cells(
    name: str, runs_folder: str, *, tier: str | None, size: str | None, cluster: Cluster | None
) -> list[CellView]:
    """All runs of a matrix as they stand.

    Args:
        name, tier, size: see `read_matrix`.
        cluster: whose image tells the runs, where it is built; else, and with None, this environment does.

    Raises:
        ConfigError: there is neither an image nor torch.
        CommandError: the matrix is wrong; `lada` has said why.
    """
    runs = Path(runs_folder).resolve()
    arguments = ["matrix", name, "--runs", str(runs), "--json"]
    for key, value in (("--tier", tier), ("--size", size)):
        arguments += [key, value] if value else []
    if cluster is not None:
        own = [Path(name).resolve()] if name.endswith((".yaml", ".yml")) else []
        listed = json.loads(ask_lada(cluster, arguments, own, runs=runs))
    else:
        done = subprocess.run(
            [sys.executable, "-m", "lada", *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise CommandError(done.returncode)
        listed = json.loads(done.stdout)
    return [_view(cell, RunDir(runs / cell["run_id"])) for cell in listed]


def once(views: Sequence[CellView]) -> list[CellView]:
    """Every run once, however many arms or matrices have it."""
    return list({view.run_id: view for view in views}.values())


def _view(cell: Mapping[str, Any], run: RunDir) -> CellView:
    return CellView(
        arm=cell["arm"],
        place=(cell["scenario"], cell["dataset"], cell["shots"]),
        seed=cell["seed"],
        at=cell["at"],
        run_id=cell["run_id"],
        state="done" if cell["finished"] else _state(run),
        seconds=_seconds(run) if cell["finished"] else 0.0,
        after=tuple(cell["after"]),
        arguments=tuple(cell["arguments"]),
        matrix=cell["matrix"],
    )


def _state(run: RunDir) -> CellState:
    if not run.run_yaml.is_file():
        return "to do"
    try:
        shot = look(run)
        return "running" if shot.driver.state == "running" else WORDS[shot.state]
    except LadaError:
        return "begun"  # killed before its plan was written; the next start mends it


def _seconds(run: RunDir) -> float:
    try:
        lines = run.timings_csv.read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return 0.0
    return sum(float(line.rpartition(",")[2]) for line in lines)
