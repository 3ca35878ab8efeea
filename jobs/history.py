"""The attempts of every stage, put together from the ledger. A record for people; commits are the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Outcome = Literal["open", "committed", "failed", "rejected", "cancelled"]
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One attempt of a stage.

    Attributes:
        stage: e.g. ``client-1/r02-learn``.
        name: e.g. ``01-ab12cd34``; the log file is called after it.
        began: when the driver decided on it (s since the epoch), None where the ledger does not say.
        submitted: when Slurm took it.
        ended: when the driver saw its end.
        job: Slurm's job id.
        resources: what it asked for: gpus, nodes, cpus, memory_gb, minutes, partition.
        change: what it got that the first attempt had not.
        outcome: ``open`` while no end is known.
        seconds: that it ran.
    """

    stage: str
    name: str
    began: float | None = None
    submitted: float | None = None
    ended: float | None = None
    job: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome = "open"
    cause: str = ""
    detail: str = ""
    action: str = ""
    exit_code: int | None = None
    node: str = ""
    seconds: float | None = None


History = Mapping[str, tuple[Attempt, ...]]
"""Stage -> its attempts, oldest first."""


def read_history(events: Iterable[Event]) -> History:
    """Attempts from the events of a ledger."""
    found: dict[str, list[Attempt]] = {}
    for event in events:
        if event.get("event") == "cancelled":
            _cancel(found, event)
            continue
        stage = event.get("stage")
        if isinstance(stage, str):
            _apply(found.setdefault(stage, []), stage, event)
    return {stage: tuple(attempts) for stage, attempts in found.items()}


def all_jobs(events: Iterable[Event]) -> list[str]:
    """Ids of all jobs that the ledger names, those of the driver included."""
    return list(dict.fromkeys(str(event["job"]) for event in events if event.get("job")))


def _apply(attempts: list[Attempt], stage: str, event: Event) -> None:
    kind, when = event.get("event"), event.get("time")
    if kind == "started":
        change = event.get("change") or {}
        attempts.append(Attempt(stage, str(event.get("attempt")), began=when, change=change))
        return
    place = _place(attempts, event)
    if place is None:
        return
    one = attempts[place]
    if kind in ("submitted", "adopted"):
        attempts[place] = replace(
            one,
            submitted=one.submitted or when,
            job=_text(event.get("job")) or one.job,
            resources=event.get("resources") or one.resources,
        )
    elif kind in ("committed", "failed"):
        attempts[place] = replace(
            one,
            outcome="committed" if kind == "committed" else "failed",
            ended=when,
            job=_text(event.get("job")) or one.job,
            node=str(event.get("node") or one.node),
            seconds=event.get("seconds", one.seconds),
            cause=str(event.get("cause", "")),
            detail=str(event.get("detail", "")),
            action=str(event.get("action", "")),
            exit_code=event.get("exit_code"),
        )
    elif kind == "rejected":
        detail = str(event.get("detail", ""))
        attempts[place] = replace(one, outcome="rejected", cause="rejected", detail=detail, ended=when)


def _place(attempts: list[Attempt], event: Event) -> int | None:
    """Index of the attempt that an event is about: the one that it names, else the newest."""
    named = event.get("attempt")
    for place in reversed(range(len(attempts))):
        if named is None or attempts[place].name == named:
            return place
    return None


def _cancel(found: dict[str, list[Attempt]], event: Event) -> None:
    jobs = {str(job) for job in event.get("jobs") or ()}
    for attempts in found.values():
        for place, one in enumerate(attempts):
            if one.job in jobs and one.outcome == "open":
                attempts[place] = replace(
                    one, outcome="cancelled", cause="cancelled", ended=event.get("time")
                )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
