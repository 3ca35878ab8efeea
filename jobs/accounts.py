"""What a run's attempts used: from Slurm's accounts, or from the ledger where there are none."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from jobs.history import Attempt, Event, History, all_jobs, read_history
from jobs.log_files import attempt_logs, tail
from jobs.slurm import DRIVER, command
from jobs.stage_job import exit_file, read_exit
from lada.errors import LadaError
from lada.layers import read_run
from lada.ledger import Ledger
from lada.rundir import RunDir, Stage, parse_stage

Kind = Literal["useful", "wasted", "running"]
COLUMNS = ("JobID", "State", "ElapsedRaw", "AllocTRES", "Submit", "Start")
IDS_PER_CALL = 200
SAVED = "resume point of "
"""How a log says that an attempt saved its work (lada.resume)."""


@dataclass(frozen=True)
class Use:
    """What one attempt, or one restart of its job, used.

    Attributes:
        party: or ``driver``.
        round: None for the driver.
        kind: ``useful``: it committed, or saved a resume point; ``running``: not over yet.
        seconds: that it ran.
        waited: seconds that it stood in the queue.
        gpus, cpus: that it held.
    """

    party: str
    round: int | None
    kind: Kind
    seconds: float
    waited: float
    gpus: int
    cpus: int

    @property
    def gpu_hours(self) -> float:
        """GPU-hours."""
        return self.gpus * self.seconds / 3600

    @property
    def cpu_hours(self) -> float:
        """Core-hours."""
        return self.cpus * self.seconds / 3600


def used(run: RunDir) -> tuple[list[Use], str]:
    """What every attempt used, and where that is known from."""
    events = Ledger(run.ledger_jsonl).read()
    history = read_history(events)
    ids = all_jobs(events)
    if not ids:
        return list(_from_ledger(run, events, history)), "the ledger: times of the stages"
    records = _accounts(ids, float(events[0].get("time", 0)))
    if records is None:
        source = "the ledger: times of the stages (Slurm keeps no accounts here, or does not answer)"
        return list(_from_ledger(run, events, history)), source
    return list(_from_accounts(run, history, ids, records)), "Slurm's accounts (sacct)"


# -- Slurm's accounts


def _accounts(ids: Sequence[str], since: float) -> list[dict[str, str]] | None:
    """Records of jobs, one per restart (-D: without it only the newest shows); None where there are none."""
    if shutil.which("sacct") is None:
        return None
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    found: list[dict[str, str]] = []
    for place in range(0, len(ids), IDS_PER_CALL):
        chosen = ",".join(ids[place : place + IDS_PER_CALL])
        done = command(["sacct", "-D", "-X", "-P", "-n", "-S", start, "-j", chosen, "-o", ",".join(COLUMNS)])
        if done.returncode:
            return None
        found += parse_accounts(done.stdout)
    return found


def parse_accounts(text: str) -> list[dict[str, str]]:
    """Lines of ``sacct -P -n`` with `COLUMNS`, by column."""
    rows = (line.split("|") for line in text.splitlines())
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows if len(row) == len(COLUMNS)]


def _from_accounts(
    run: RunDir, history: History, ids: Collection[str], records: Sequence[Mapping[str, str]]
) -> Iterator[Use]:
    attempts = {one.job: one for found in history.values() for one in found if one.job}
    by_job: dict[str, list[Mapping[str, str]]] = {}
    for record in records:
        if record["JobID"] in ids:
            by_job.setdefault(record["JobID"], []).append(record)
    for job, restarts in by_job.items():
        restarts.sort(key=lambda record: record["Submit"])
        attempt = attempts.get(job)
        for number, record in enumerate(restarts):
            last = number == len(restarts) - 1
            kind = "useful" if attempt is None else _kind(run, attempt, record, number, last=last)
            stage = None if attempt is None else _stage(attempt)
            gpus, cpus = allocated(record["AllocTRES"])
            yield Use(
                party=DRIVER if stage is None else stage.party,
                round=None if stage is None else stage.round,
                kind="running" if record["State"] == "RUNNING" else kind,
                seconds=float(record["ElapsedRaw"] or 0),
                waited=_waited(record),
                gpus=gpus,
                cpus=cpus,
            )


def _kind(run: RunDir, attempt: Attempt, record: Mapping[str, str], restart: int, *, last: bool) -> Kind:
    """Useful is what became the commit, and what a later restart or attempt went on from."""
    stage = _stage(attempt)
    unnoticed = attempt.outcome == "open" and record["State"] == "COMPLETED" and run.is_committed(stage)
    if last and (attempt.outcome == "committed" or unnoticed):
        return "useful"
    mine = [log.path for log in attempt_logs(run, stage, attempt.name) if log.restart == restart]
    return "useful" if any(SAVED in line for path in mine for line in tail(path)) else "wasted"


def allocated(tres: str) -> tuple[int, int]:
    """GPUs and cores of sacct's AllocTRES, e.g. ``billing=1,cpu=4,gres/gpu=2,mem=500M,node=1``."""
    found = dict(re.findall(r"([\w/]+)=(\d+)", tres))
    return int(found.get("gres/gpu", 0)), int(found.get("cpu", 0))


def _waited(record: Mapping[str, str]) -> float:
    try:
        submitted = datetime.fromisoformat(record["Submit"])
    except ValueError:
        return 0.0
    try:
        began = datetime.fromisoformat(record["Start"])
    except ValueError:  # "Unknown": it waits still, or never began
        began = datetime.now() if record["State"] == "PENDING" else submitted
    return max(0.0, (began - submitted).total_seconds())


# -- the ledger


def _from_ledger(run: RunDir, events: Sequence[Event], history: History) -> Iterator[Use]:
    threads = _threads(run)
    for attempts in history.values():
        for one in attempts:
            stage = _stage(one)
            good = one.outcome == "committed" or one.cause == "warned"
            kind: Kind = "running" if one.outcome == "open" else "useful" if good else "wasted"
            gpus, cpus = asked(one.resources) if one.resources else (0, threads)
            waited = _waited_by_exit_file(run, stage, one)
            yield Use(stage.party, stage.round, kind, one.seconds or 0.0, waited, gpus, cpus)
    yield from _drivers(events)


def _drivers(events: Sequence[Event]) -> Iterator[Use]:
    """Driver jobs, by the events between which they were at work; without a job it is part of its stages."""
    began: float | None = None
    last = 0.0
    for event in [*events, {"event": "driver-began"}]:
        if event["event"] == "driver-began":
            if began is not None:
                yield Use(DRIVER, None, "useful", last - began, 0.0, 0, 1)
            began = float(event["time"]) if event.get("job") else None
        last = float(event.get("time", last))


def asked(resources: Mapping[str, Any]) -> tuple[int, int]:
    """GPUs and cores that an attempt asked for, as the ledger states it (in sbatch's words)."""
    nodes = int(resources.get("nodes", 1))
    words = str(resources.get("gpus_per_node") or resources.get("gres") or 0)
    return nodes * int(words.rpartition(":")[2]), nodes * int(resources.get("cpus_per_task", 1))


def _waited_by_exit_file(run: RunDir, stage: Stage, attempt: Attempt) -> float:
    if attempt.submitted is None:
        return 0.0
    record = read_exit(exit_file(run, stage, attempt.name))
    return 0.0 if record is None or record.restarts else max(0.0, record.began - attempt.submitted)


def _threads(run: RunDir) -> int:
    try:
        return read_run(run.root).numerics.threads
    except LadaError:
        return 1  # a run.yaml of another version


def _stage(attempt: Attempt) -> Stage:
    party, _, name = attempt.stage.partition("/")
    return parse_stage(name, party)
