"""One cell of the grid: what is known of a stage, and how to say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.driver_view import QUEUED, DriverView, is_over
from jobs.history import Attempt, History
from jobs.log_files import Progress, last_progress, newest_log
from jobs.slurm import Job, job_name
from jobs.words import cause_words, reason_words
from lada.rundir import RunDir, Stage

StageState = Literal["committed", "running", "queued", "failed", "waiting", "unknown"]


@dataclass(frozen=True)
class Facts:
    """What all cells of a grid are told from.

    Attributes:
        jobs: of this run; None: Slurm did not answer.
        accuracies: per cent, by the stage that ends a party's round.
    """

    run: RunDir
    history: History
    jobs: Sequence[Job] | None
    driver: DriverView
    accuracies: Mapping[Stage, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageView:
    """A stage at one moment.

    Attributes:
        text: what is to be said of it beside its state.
        attempts: how many there were, the present one and restarts of requeued jobs included.
        reason: Slurm's code for why it waits, todo: what a person can do, stuck: it will not start by itself.
        elapsed, limit: as squeue writes them.
        seconds: that the committed attempt took.
    """

    stage: Stage
    state: StageState
    text: str = ""
    attempts: int = 0
    job: str | None = None
    node: str = ""
    reason: str = ""
    todo: str = ""
    stuck: bool = False
    elapsed: str = ""
    limit: str = ""
    progress: Progress | None = None
    accuracy: float | None = None
    cause: str = ""
    exit_code: int | None = None
    detail: str = ""
    seconds: float | None = None
    log: Path | None = None


def look_at_stage(stage: Stage, facts: Facts) -> StageView:
    """The cell of a stage."""
    attempts = facts.history.get(str(stage), ())
    last = attempts[-1] if attempts else None
    logs = {one.name: newest_log(facts.run, stage, one.name) for one in attempts}
    count = sum(1 + (found.restart if found else 0) for found in logs.values())
    newest = logs[last.name] if last else None
    log = None if newest is None else newest.path
    if facts.run.is_committed(stage):
        return StageView(
            stage,
            "committed",
            attempts=count,
            job=last.job if last else None,
            node=last.node if last else "",
            accuracy=facts.accuracies.get(stage),
            seconds=last.seconds if last else None,
            log=log,
        )
    job = _job(stage, facts, last)
    if job is not None:
        return _in_queue(stage, job, count, log)
    if last is None:
        return StageView(stage, "waiting")
    if last.outcome == "open":
        return _without_job(stage, last, facts, count, log)
    if last.outcome in ("failed", "rejected"):
        return _failed(stage, last, facts, count, log)
    text = "cancelled" if last.outcome == "cancelled" else "its commit is gone: runs again"
    return StageView(stage, "waiting", text, attempts=count, cause=last.cause, log=log)


def _job(stage: Stage, facts: Facts, last: Attempt | None) -> Job | None:
    """The live job of a stage: the one that the ledger names, or one of its name (its id was never heard)."""
    name = job_name(facts.run, stage)
    mine = [
        job
        for job in facts.jobs or ()
        if not is_over(job) and (job.name == name or (last is not None and job.id == last.job))
    ]
    mine.sort(key=lambda job: (job.state in QUEUED, last is None or job.id != last.job))
    return mine[0] if mine else None


def _in_queue(stage: Stage, job: Job, count: int, log: Path | None) -> StageView:
    if job.state in QUEUED:
        reason = reason_words(job.reason)
        return StageView(
            stage,
            "queued",
            reason.text,
            attempts=max(1, count),
            job=job.id,
            reason=job.reason,
            todo=reason.todo.replace("<job>", job.id),
            stuck=reason.stuck,
            limit=job.limit,
            log=log,
        )
    odd = "" if job.state == "RUNNING" else job.state.lower().replace("_", " ")
    return StageView(
        stage,
        "running",
        odd,
        attempts=max(1, count),
        job=job.id,
        node=job.nodes,
        elapsed=job.elapsed,
        limit=job.limit,
        progress=None if log is None else last_progress(log),
        log=log,
    )


def _without_job(stage: Stage, last: Attempt, facts: Facts, count: int, log: Path | None) -> StageView:
    """A begun attempt of which no end is known and that the queue does not list."""
    progress = None if log is None else last_progress(log)
    if facts.jobs is None:
        text = f"job {last.job} was submitted" if last.job else "was begun"
        return StageView(stage, "unknown", text, count, last.job, progress=progress, log=log)
    if last.job:
        text = "its job is over; the driver has not looked yet"
        if facts.driver.state != "running":
            text = "its job is over without a commit; runs again"
        return StageView(stage, "waiting", text, count, last.job, log=log)
    if facts.driver.state == "none":
        return StageView(stage, "waiting", "was cut off; runs again", count, log=log)
    if log is None:
        return StageView(stage, "queued", "waits for a free core", count)
    return StageView(stage, "running", attempts=count, progress=progress, log=log)


def _failed(stage: Stage, last: Attempt, facts: Facts, count: int, log: Path | None) -> StageView:
    again = "; will be tried again" if facts.driver.state == "running" and last.action != "stop" else ""
    code = f" (exit code {last.exit_code})" if last.exit_code else ""
    return StageView(
        stage,
        "failed",
        f"{cause_words(last.cause)}{code}{again}",
        attempts=count,
        job=last.job,
        node=last.node,
        cause=last.cause,
        exit_code=last.exit_code,
        detail=last.detail,
        log=log,
    )
