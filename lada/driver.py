"""The visible loop: launch what is ready, wait for its commits, publish, go on.

Who runs a stage is the launcher's business. State is what is on disk: a driver that is killed at any
instruction is simply started again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from lada.config import RunConfig, read_run
from lada.errors import NOT_RETRIED, ExchangeError, StageError
from lada.exchange import (
    check_commit,
    is_published_whole,
    publish,
    published_questions,
    published_schema,
    reject,
    sweep,
    withdraw,
)
from lada.ledger import Ledger
from lada.plan import Plan, read_plan
from lada.results import write_metrics
from lada.rundir import RunDir, Stage, sha256


@dataclass(frozen=True)
class Ended:
    """An attempt that is over; whether it committed is seen on disk, not here."""

    stage: Stage
    exit_code: int
    detail: str
    seconds: float


class Launcher(Protocol):
    """Runs stages: in this process, in a subprocess, as a Slurm job."""

    def start(self, stage: Stage, attempt: str) -> None:
        """Begin an attempt."""

    def poll(self) -> Sequence[Ended]:
        """Attempts that ended since the last call."""


@dataclass
class Driver:
    """Drives one run to its end.

    Args:
        run: the run's folder; run.yaml and plan.json exist.
        launcher: who runs the stages.
        max_attempts: attempts of a stage before the run stops.
        report: called with one line for a person at every event.
        poll_seconds: pause between two looks at a launcher that has nothing new.
    """

    run: RunDir
    launcher: Launcher
    max_attempts: int = 3
    report: Callable[[str], None] = lambda line: None
    poll_seconds: float = 0.2

    def __post_init__(self) -> None:
        self.config: RunConfig = read_run(self.run.root)
        self.plan: Plan = read_plan(self.run)
        self.ledger = Ledger(self.run.ledger_jsonl)
        self.public_ids = {question.id for question in self.run.public_questions()}
        self._early: list[Ended] = []

    def drive(self, *, rounds: int | None = None) -> bool:
        """Run every pending stage, or those up to a round.

        Returns:
            Whether anything was left to do.

        Raises:
            StageError: when a stage failed ``max_attempts`` times or cannot succeed.
        """
        self.heal()
        worked = False
        while group := self._next(rounds):
            worked = True
            self.run_group(group)
            write_metrics(self.run, self.config, self.plan)
        write_metrics(self.run, self.config, self.plan)
        return worked

    def run_group(self, group: Sequence[Stage]) -> None:
        """Run stages side by side until each is committed, verified and published."""
        attempts = dict.fromkeys(group, 1)
        for stage in group:
            self._start(stage)
        while attempts:
            ended = self._poll(attempts)
            for end in ended:
                problem = self._accept(end)
                if problem is None:
                    del attempts[end.stage]
                    continue
                self._stop_if_hopeless(end, problem, attempts[end.stage])
                attempts[end.stage] += 1
                self._heal_before(group)
                self._start(end.stage)
            if not ended:
                time.sleep(self.poll_seconds)

    def _poll(self, wanted: Collection[Stage]) -> list[Ended]:
        """What ended of the wanted stages; the end of another group's stage waits for that group."""
        ended = [*self._early, *self.launcher.poll()]
        self._early = [end for end in ended if end.stage not in wanted]
        return [end for end in ended if end.stage in wanted]

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
        if not is_published_whole(self.run, stage):
            withdraw(self.run, stage)
            publish(self.run, stage)

    def _start(self, stage: Stage) -> None:
        attempt = f"{len(self._attempts(stage)) + 1:02d}-{os.urandom(4).hex()}"
        self.ledger.write("started", stage=str(stage), attempt=attempt)
        self.launcher.start(stage, attempt)

    def _attempts(self, stage: Stage) -> list[str]:
        return [
            str(event.get("attempt"))
            for event in self.ledger.read()
            if event.get("event") == "started" and event.get("stage") == str(stage)
        ]

    def _accept(self, end: Ended) -> str | None:
        """Verify and publish what an attempt committed; returns what is wrong, None when nothing is."""
        if not self.run.is_committed(end.stage):
            detail = end.detail or f"ended without a commit (exit code {end.exit_code})"
            self.ledger.write("failed", stage=str(end.stage), exit_code=end.exit_code, detail=detail[-2000:])
            return detail
        problem = self._refused(end.stage)
        if problem is not None:
            return problem
        self._publish(end.stage)
        sweep(self.run, end.stage.party)
        self.ledger.write("committed", stage=str(end.stage), seconds=round(end.seconds, 3))
        self.report(f"{end.stage} committed ({end.seconds:.1f} s)")
        return None

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
            run_hash=sha256(self.run.run_yaml.read_bytes()),
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

    def _stop_if_hopeless(self, end: Ended, problem: str, attempt: int) -> None:
        hopeless = end.exit_code in NOT_RETRIED
        if not hopeless and attempt < self.max_attempts:
            self.report(f"{end.stage} failed (attempt {attempt} of {self.max_attempts}): {problem}")
            return
        logs = self.run.root / "logs" / end.stage.party
        raise StageError(
            f"{end.stage} failed {'for good' if hopeless else f'{attempt} times'}: {problem}\nlogs: {logs}"
        )
