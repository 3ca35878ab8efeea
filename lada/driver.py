"""The visible loop: launch what is ready, wait for its commits, publish, go on.

Who runs a stage is the launcher's business. State is what is on disk: a driver that is killed at any
instruction is simply started again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lada import reuse
from lada.config import SERVER, RunConfig
from lada.errors import ExchangeError, LadaError, StageError
from lada.exchange import is_published_whole, publish, put_links_away, reject, sweep, withdraw
from lada.incoming import check_commit, published_questions, published_schema
from lada.layers import read_run
from lada.ledger import Ledger
from lada.plan import Plan, read_plan
from lada.policy import Cause, Change, Decision, Failure, cause_of_exit, change_after, decide
from lada.provenance import run_hashes
from lada.results import write_metrics
from lada.rundir import RunDir, Stage
from lada.space import STUTTERS, can_write, has_free, is_full

MAX_STUTTERS = 20
"""Errors of the file server that a driver waits out, a second or so each."""


@dataclass(frozen=True)
class Ended:
    """An attempt that is over; whether it committed is seen on disk, not here.

    Attributes:
        cause: what the launcher knows of a failure; None: what the exit code states.
        facts: job, node and the like, for the ledger.
    """

    stage: Stage
    exit_code: int
    detail: str
    seconds: float
    cause: Cause | None = None
    node: str | None = None
    job: str | None = None


class Launcher(Protocol):
    """Runs stages: in this process, in a subprocess, as a Slurm job."""

    def start(self, stage: Stage, attempt: str, change: Change) -> Mapping[str, Any]:
        """Begin an attempt; returns facts of it for the ledger (none: empty)."""

    def adopt(self, stage: Stage) -> Mapping[str, Any] | None:
        """Take over an attempt of a stage that is still alive; None when there is none."""

    def poll(self) -> Sequence[Ended]:
        """Attempts that ended since the last call."""


@dataclass
class Driver:
    """Drives one run to its end.

    Args:
        run: the run's folder; run.yaml and plan.json exist.
        launcher: who runs the stages.
        max_attempts: attempts of a stage before the run stops, for causes without a limit of their own.
        report: called with one line for a person at every event.
        poll_seconds: pause between two looks at a launcher that has nothing new.
        free_bytes: no stage is started while the run's disk has less than this.
        continued: goes on by itself (a requeued driver job): earlier failures still count.
        check: called before anything is started; raises when this driver lost the run.
        reuse: take local training from earlier runs with the same inputs, and keep it for later ones.
    """

    run: RunDir
    launcher: Launcher
    max_attempts: int = 3
    report: Callable[[str], None] = lambda line: None
    poll_seconds: float = 0.2
    free_bytes: int = 0
    continued: bool = False
    check: Callable[[], None] = lambda: None
    reuse: bool = False

    def __post_init__(self) -> None:
        self.config: RunConfig = read_run(self.run.root)
        self.plan: Plan = read_plan(self.run)
        self.ledger = Ledger(self.run.ledger_jsonl)
        self.public_ids = {question.id for question in self.run.public_questions()}
        self._ends: list[Ended] = []  # what no line of the ledger tells of yet

    def drive(self, *, rounds: int | None = None) -> bool:
        """Run every pending stage, or those up to a round.

        Returns:
            Whether anything was left to do.

        Raises:
            StageError: when a stage failed too often or cannot succeed.
        """
        worked = False
        stutters = 0
        while True:
            try:
                return self._drive(rounds) or worked
            except OSError as error:
                worked = True
                if error.errno in STUTTERS and stutters < MAX_STUTTERS:
                    stutters += 1
                    self.report(f"{type(error).__name__}: {error}: trying again")
                    time.sleep(max(1.0, self.poll_seconds))
                    continue
                if not is_full(error):
                    raise
                self._wait_for_space(f"{type(error).__name__}: {error}")
            except LadaError as error:
                self._note("stopped", reason=str(error)[-2000:], exit_code=error.exit_code)
                raise

    def _drive(self, rounds: int | None) -> bool:
        self.heal()
        for end in [end for end in self._ends if self.run.is_committed(end.stage)]:
            self._accept(end)  # an error came between its commit and its line
        worked = False
        while group := self._next(rounds):
            if not worked:
                self.ledger.write("driver-began", **_who(), continued=self.continued)
                self.continued = True  # what follows an error that was waited out is the same start
            worked = True
            self.run_group(group)
            write_metrics(self.run, self.config, self.plan)
        write_metrics(self.run, self.config, self.plan)
        finished = self._next(None) is None
        if worked or (finished and not self.ledger.says_finished()):
            self.ledger.write("driver-ended", finished=finished)
        return worked

    def run_group(self, group: Sequence[Stage]) -> None:
        """Run stages side by side until each is committed, verified and published."""
        waiting = set(group)
        for stage in group:
            if all(end.stage != stage for end in self._ends):
                self._start(stage)
        while waiting:
            self.check()
            self._ends += self.launcher.poll()
            # What ended of another group's stages waits for that group.
            ended = [end for end in self._ends if end.stage in waiting]
            for end in ended:
                failure = self._accept(end)
                if failure is None:
                    waiting.remove(end.stage)
                    continue
                self._decide(end, *failure)
                self._heal_before(group)
                self._start(end.stage)
            if not ended:
                time.sleep(self.poll_seconds)

    def _next(self, rounds: int | None) -> tuple[Stage, ...] | None:
        group = next(self.plan.pending(self.run.is_committed), None)
        return None if group is None or (rounds is not None and group[0].round > rounds) else group

    def _heal_before(self, group: Sequence[Stage]) -> None:
        """Heal, and run again whatever earlier stage turned out to be broken."""
        self.heal()
        while (earlier := self._next(None)) and earlier[0].name != group[0].name:
            self.run_group(earlier)

    def heal(self) -> None:
        """Verify every commit and its publication: refuse what is broken, restore what is missing."""
        for party in self.plan.parties:
            sweep(self.run, party)
        for group in self.plan.groups():
            for stage in group:
                # A folder without a manifest is no commit, but stands in the way of one.
                if self.run.commit(stage).exists() and self._refused(stage) is None:
                    self._publish(stage)

    def _publish(self, stage: Stage) -> None:
        for remark in put_links_away(self.run, self.plan.parties):
            self.report(remark)
        if not is_published_whole(self.run, stage):
            withdraw(self.run, stage)
            publish(self.run, stage)

    # -- attempts

    def _start(self, stage: Stage) -> None:
        adopted = self.launcher.adopt(stage)
        if adopted is not None:
            self.ledger.write("adopted", stage=str(stage), **adopted)
            self.report(f"{stage} is at work already{_named(adopted)}")
            return
        if not has_free(self.run.root, self.free_bytes):
            self._wait_for_space(f"less than {self.free_bytes / 1e9:g} GB are free")
        events = self._events(stage)
        attempt = f"{sum(one['event'] == 'started' for one in events) + 1:02d}-{os.urandom(4).hex()}"
        failures = _failures(events)
        change = change_after(failures) if failures else Change()
        self.ledger.write("started", stage=str(stage), attempt=attempt, **_if_any(change=change.facts()))
        if self.reuse and self._is_first(stage) and (remark := reuse.offer(self.run, self.config, stage)):
            self.report(f"{stage}: {remark}")
        facts = self.launcher.start(stage, attempt, change)
        if facts:
            self.ledger.write("submitted", stage=str(stage), attempt=attempt, **facts)

    def _accept(self, end: Ended) -> tuple[Cause, str] | None:
        """Verify and publish what an attempt committed; returns what is wrong, None when nothing is."""
        if not self.run.is_committed(end.stage):
            cause = end.cause or cause_of_exit(end.exit_code)
            return cause, end.detail or f"ended without a commit (exit code {end.exit_code})"
        problem = self._refused(end.stage)
        if problem is not None:
            return Cause.CORRUPT, problem
        self._publish(end.stage)
        sweep(self.run, end.stage.party)
        self._tell(end, "committed")
        self.report(f"{end.stage} committed ({end.seconds:.1f} s)")
        if self._is_first(end.stage):
            self._reused(end.stage)
        return None

    def _is_first(self, stage: Stage) -> bool:
        """Whether a stage reads nothing that this run computed."""
        return not self.plan.before(stage)

    def _reused(self, stage: Stage) -> None:
        """Say that a first stage's work comes from an earlier run, or keep it for later ones."""
        if reuse.was_taken(self.run, stage):
            self.ledger.write("reused", stage=str(stage))
            what = "test before any training" if stage.party == SERVER else "local training"
            self.report(f"{stage.party}: {what} taken from an earlier run with the same inputs")
            return
        enough = self.reuse and has_free(self.run.root, self.free_bytes)
        if enough and (remark := reuse.share(self.run, self.config, stage)):
            self.report(remark)

    def _decide(self, end: Ended, cause: Cause, problem: str) -> None:
        """Note a failure and what follows from it: go on, wait for space, or stop.

        Raises:
            StageError: the run stops here.
        """
        earlier = _failures(self._events(end.stage))
        decision = decide([*earlier, Failure(cause, end.node)], max_attempts=self.max_attempts)
        self._tell(
            end,
            "failed",
            exit_code=end.exit_code,
            cause=str(cause),
            detail=problem[-2000:],
            action=decision.action,
        )
        if decision.action == "stop":
            logs = self.run.root / "logs" / end.stage.party
            raise StageError(f"{end.stage} {decision.reason}: {problem}\nlogs: {logs}")
        self.report(f"{end.stage} {cause}: {problem}{_next_time(decision)}")
        if decision.action == "pause":
            self._wait_for_space(problem)

    def _tell(self, end: Ended, event: str, **fields: Any) -> None:
        """Write to the ledger how an attempt ended; only then it is done with, whatever error came before."""
        seconds = round(end.seconds, 3)
        self.ledger.write(event, stage=str(end.stage), **fields, seconds=seconds, **_where(end))
        self._ends.remove(end)

    def _events(self, stage: Stage) -> list[dict[str, Any]]:
        """What the ledger holds of a stage, and where a person started the run."""
        return [
            event
            for event in self.ledger.read()
            if event.get("stage") == str(stage) or event.get("event") == "driver-began"
        ]

    def _refused(self, stage: Stage) -> str | None:
        """Verify a commit and quarantine it if it is not what it should be; returns why."""
        try:
            check_commit(
                self.run,
                stage,
                limits=self.config.exchange,
                public_ids=self.public_ids,
                synthetic_ids=self._synthetic_ids(stage),
                adapter_schema=self._adapter_schema(stage),
            )
        except ExchangeError as error:
            where = reject(self.run, stage, error)
            self.ledger.write("rejected", stage=str(stage), detail=str(error), moved_to=where.name)
            self.report(f"{stage} rejected: {error}")
            return str(error)
        return None

    def _synthetic_ids(self, stage: Stage) -> list[str]:
        """Ids of the questions that the server published before this stage; read from disk every time."""
        found = published_questions(
            self.run,
            self.plan.before(stage),
            limits=self.config.exchange,
            run_hashes=run_hashes(self.run),
        )
        return [question.id for question in found]

    def _adapter_schema(self, stage: Stage) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        for group in self.plan.groups():
            for earlier in group:
                if earlier == stage:
                    return None
                if earlier.party == stage.party and self.run.is_committed(earlier):
                    schema = published_schema(self.run, earlier)
                    if schema is not None:
                        return dict(schema)
        return None

    # -- space

    def _wait_for_space(self, reason: str) -> None:
        """Pause until the run's disk has room; stages that run go on running."""
        self.report(f"paused: {reason}. Free space on {self.run.root}; the run then goes on by itself")
        self._note("paused", reason=reason[-2000:])
        began = time.monotonic()
        while not (has_free(self.run.root, self.free_bytes) and can_write(self.run.root)):
            self.check()
            time.sleep(max(1.0, self.poll_seconds))
        paused = time.monotonic() - began
        self._note("went-on", paused=round(paused, 1))
        # What was said and noted when the pause began may have found no room on this very disk.
        self.report(f"there is space again: going on, paused for {paused:.0f} s")

    def _note(self, event: str, **fields: Any) -> None:
        """Write to the ledger if that is possible: it may be the ledger's disk that is full."""
        try:
            self.ledger.write(event, **fields)
        except OSError as error:
            self.report(f"the ledger cannot be written: {error}")


def _failures(events: Sequence[Mapping[str, Any]]) -> list[Failure]:
    """Failures of a stage since a person last started the run."""
    begins = [place for place, event in enumerate(events) if _is_fresh_start(event)]
    recent = events[begins[-1] :] if begins else events
    return [
        Failure(Cause(event["cause"]), event.get("node"))
        for event in recent
        if event.get("event") == "failed"
    ]


def _is_fresh_start(event: Mapping[str, Any]) -> bool:
    return event.get("event") == "driver-began" and not event.get("continued")


def _who() -> dict[str, Any]:
    return {"host": os.uname().nodename, "pid": os.getpid(), **_if_any(job=os.environ.get("SLURM_JOB_ID"))}


def _where(end: Ended) -> dict[str, Any]:
    return _if_any(job=end.job, node=end.node)


def _if_any(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value}


def _named(facts: Mapping[str, Any]) -> str:
    return f" (job {facts['job']})" if "job" in facts else ""


def _next_time(decision: Decision) -> str:
    facts = decision.change.facts()
    changed = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"; next attempt: {changed}" if changed else ""
