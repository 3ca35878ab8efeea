"""Whether a driver is at work on a run: what the queue, the lease and the ledger say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jobs.history import Event
from jobs.slurm import Job, job_name, run_jobs
from jobs.words import reason_words
from lada.lease import owner_lives, read_owner
from lada.rundir import RunDir

QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a job that has not begun, or not begun again."""


@dataclass(frozen=True)
class DriverView:
    """The driver of a run.

    Attributes:
        state: ``running``, ``queued`` (its job waits), ``none``, or ``unknown``: it is out of sight.
        text: for a person.
        paused: why it waits, as it wrote into the ledger; empty where it does not.
        stopped: why it gave up; empty where it did not.
        finished: whether it said that nothing is left to do.
    """

    state: Literal["running", "queued", "none", "unknown"]
    text: str
    job: str | None = None
    host: str | None = None
    pid: int | None = None
    todo: str = ""
    paused: str = ""
    stopped: str = ""
    finished: bool = False


def is_over(job: Job) -> bool:
    """Whether a job that squeue still lists has ended."""
    return job.state == "COMPLETING"


def look_at_driver(run: RunDir, events: Sequence[Event], queue: Sequence[Job] | None) -> DriverView:
    """What is known of a run's driver.

    Args:
        queue: all jobs of the calling user (a round job bears no run's name); None: Slurm did not answer.
    """
    found, said = _find(run, queue), _last_words(events)
    return replace(found, paused=said.paused, stopped=said.stopped, finished=said.finished)


def _find(run: RunDir, queue: Sequence[Job] | None) -> DriverView:
    marked = run_jobs(run, queue or ()) or ()
    mine = [job for job in marked if job.name == job_name(run, None) and not is_over(job)]
    mine.sort(key=lambda job: job.state in QUEUED)
    if mine and mine[0].state not in QUEUED:
        job = mine[0]
        text = f"job {job.id} on {job.nodes}, {job.state.lower()} for {job.elapsed} of {job.limit}"
        return DriverView("running", text, job=job.id, host=job.nodes)
    owner = read_owner(run.lease)
    if owner is not None:
        found = _from_lease(owner, queue)
        if found.state != "none" or not mine:
            return found
    if mine:
        job, reason = mine[0], reason_words(mine[0].reason)
        return DriverView("queued", f"job {job.id} is queued: {reason.text}", job=job.id, todo=reason.todo)
    if queue is None:
        return DriverView("unknown", "Slurm does not answer, so its job cannot be seen")
    return DriverView("none", "none is at work")


def _from_lease(owner: dict[str, object], queue: Sequence[Job] | None) -> DriverView:
    host, pid, job = str(owner.get("host")), owner.get("pid"), owner.get("job")
    number = pid if isinstance(pid, int) else None
    named = f"process {pid} on {host}" + (f", job {job}" if job else "")
    lives = owner_lives(owner)
    if lives is None and job and queue is not None:
        # Where its job is not in the queue, nobody is there any more.
        lives = any(one.id == str(job) and one.state not in QUEUED and not is_over(one) for one in queue)
    if lives is None:
        text = f"{named}, as its lease says; that host cannot be asked from here"
        return DriverView("unknown", text, job=_text(job), host=host, pid=number)
    if not lives:
        return DriverView("none", f"none is at work; the last was {named}")
    return DriverView("running", named, job=_text(job), host=host, pid=number)


@dataclass(frozen=True)
class _Said:
    paused: str = ""
    stopped: str = ""
    finished: bool = False


def _last_words(events: Sequence[Event]) -> _Said:
    """What the driver last said of itself: paused, stopped, finished."""
    said = _Said()
    for event in events:
        kind, reason = event.get("event"), str(event.get("reason") or "without a reason")
        if kind == "driver-began":
            said = _Said()
        elif kind == "paused":
            said = replace(said, paused=reason)
        elif kind == "went-on":
            said = replace(said, paused="")
        elif kind == "stopped":
            said = replace(said, stopped=reason)
        elif kind == "driver-ended":
            said = replace(said, finished=bool(event.get("finished")))
    return said


def _text(value: object) -> str | None:
    return None if value is None else str(value)
