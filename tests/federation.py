"""Whole tiny federations for tests: real models, real generation, real training, real files."""

from __future__ import annotations

import csv
from pathlib import Path

from lada.driver import Driver
from lada.layers import layers
from lada.rundir import RunDir, Stage
from lada.runs import open_run
from lada.stage import InProcess

SMALL = (
    "data.num_train=16",
    "data.num_test=8",
    "data.num_public=32",
    "generation.max_new_tokens=80",
)
"""Below SIZE=tiny: seconds per run."""


class Quiet:
    """A reporter that shows nothing."""

    def phase(self, name: str, total: int):
        return lambda done, note: None


def make(
    runs: Path,
    *settings: str,
    scenario: str = "one-client",
    method: str = "lada",
    dataset: str = "lab-math",
    small: bool = True,
) -> RunDir:
    """A run's folder."""
    found = layers(
        scenario=scenario,
        method=method,
        dataset=dataset,
        size="tiny",
        settings=[*(SMALL if small else ()), *settings],
    )
    return open_run(found, runs)[0]


def drive(run: RunDir) -> RunDir:
    """Drive a run to its end in this process."""
    Driver(run, InProcess(run, lambda stage, attempt: Quiet())).drive()
    return run


def metrics(run: RunDir) -> dict[tuple[int, str, str], float]:
    """(round, party, metric) -> value."""
    with run.metrics_csv.open(encoding="utf-8", newline="") as file:
        return {(int(r["round"]), r["party"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}


def commit(run: RunDir, round: int, step: str, party: str) -> Path:
    """Folder of a commit."""
    return run.commit(Stage(round, step, party))
