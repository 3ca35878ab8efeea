"""Launcher on submitit's local executor: one subprocess per stage, here, one stage per core at a time."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from jobs.cluster import Cluster
from jobs.stage_job import exit_file, read_exit, run_command, run_in_container, submitit_folder
from lada.driver import Ended
from lada.policy import Change
from lada.rundir import RunDir, Stage

NO_TIME_LIMIT = 60 * 24 * 30
"""Minutes; submitit's own default of 5 would end a stage early."""


@dataclass
class _Live:
    stage: Stage
    job: submitit.Job[int]
    exit_file: Path
    begun: float


class Local:
    """Launcher on submitit's local executor.

    Args:
        run: the run's folder.
        width: stages that run at once; None: one per core that this process may use.
        cluster: run stages in its image; None: in this virtual environment.
    """

    def __init__(self, run: RunDir, *, width: int | None = None, cluster: Cluster | None = None) -> None:
        self._run, self._cluster = run, cluster
        self._width = width or len(os.sched_getaffinity(0))
        self._waiting: deque[tuple[Stage, str, int]] = deque()
        self._live: list[_Live] = []

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
        """Queue an attempt; it begins when fewer than ``width`` others run."""
        self._waiting.append((stage, attempt, change.micro_batch_divisor))
        self._fill()
        return {}

    def adopt(self, stage: Stage) -> dict[str, Any] | None:
        """An attempt of this very launcher that waits or runs; those of a dead driver are not found."""
        mine = [*(live.stage for live in self._live), *(waiting for waiting, _, _ in self._waiting)]
        return {} if stage in mine else None

    def poll(self) -> list[Ended]:
        """Attempts that ended since the last call."""
        over = [live for live in self._live if live.job.done()]
        self._live = [live for live in self._live if live not in over]
        self._fill()
        ended = []
        for live in over:
            record = read_exit(live.exit_file)
            code = -1 if record is None else record.exit_code
            detail = "the job ended without an exit code" if record is None else record.detail
            ended.append(Ended(live.stage, code, detail, time.monotonic() - live.begun))
        return ended

    def stop(self) -> None:
        """Interrupt what still runs and forget what waits; what has committed stays committed."""
        self._waiting.clear()
        for live in self._live:
            live.job.cancel(check=False)
        while self._live:
            self.poll()
            time.sleep(0.05)

    def _fill(self) -> None:
        while self._waiting and len(self._live) < self._width:
            self._live.append(self._submit(*self._waiting.popleft()))

    def _submit(self, stage: Stage, attempt: str, divisor: int) -> _Live:
        folder = submitit_folder(self._run, stage.party)
        folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.LocalExecutor(folder=folder)
        executor.update_parameters(timeout_min=NO_TIME_LIMIT, name=f"{stage.party}.{stage.name}")
        exit_at = exit_file(self._run, stage, attempt)
        if self._cluster is None:
            log = self._run.log(stage.party, stage, attempt)
            command = step_command(self._run, stage, attempt, divisor)
            job = executor.submit(run_command, command, str(log), str(exit_at))
        else:
            named = (str(self._run.root), stage.party, stage.name, attempt, divisor)
            job = executor.submit(run_in_container, *named)
        return _Live(stage, job, exit_at, time.monotonic())


def step_command(run: RunDir, stage: Stage, attempt: str, divisor: int = 1) -> list[str]:
    """The command that computes one stage in this virtual environment."""
    named = {"--run": str(run.root), "--party": stage.party, "--stage": stage.name, "--attempt": attempt}
    if divisor > 1:
        named["--micro-batch-divisor"] = str(divisor)
    return [sys.executable, "-m", "lada", "step", *(part for pair in named.items() for part in pair)]
