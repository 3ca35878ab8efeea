"""What a run looks like at this moment: commits, ledger, logs, lease and Slurm's queue put together.

Commits are the truth; the queue says what is under way; the ledger says what was tried and why it failed.
Unknown is never done and never failed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from jobs.cluster import cluster_file
from jobs.driver_view import DriverView, look_at_driver
from jobs.estimate import seconds_left
from jobs.history import Event, History, read_history
from jobs.slurm import Job, SlurmError, my_jobs, run_jobs
from jobs.stage_view import Facts, StageView, look_at_stage
from lada.errors import LadaError
from lada.layers import read_run
from lada.ledger import Ledger
from lada.plan import Plan, read_plan
from lada.results import read_metrics
from lada.rundir import RunDir, Stage
from lada.space import PROBE_BYTES

RunState = Literal["pending", "running", "paused", "done", "failed"]
SlurmState = Literal["answers", "silent", "unused"]


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        label: scenario, method, dataset and so on, for a person.
        state: ``done``: all is committed; ``running``: a driver is at work; ``pending``: its job waits;
            ``paused``: nobody at work on what is left, or the driver waits for something; ``failed``: it gave
            up.
        slurm: whether Slurm answered; ``unused``: the run has no jobs.
        rounds_done: rounds of which every stage is committed.
        left_seconds: estimate, None while it is not known.
        last_event: the newest event of the ledger.
        last_error: the newest failure, refusal or stop, unless the run is done.
        hint: what a person can do now; empty where nothing needs to be done.
    """

    run: RunDir
    run_id: str
    label: str
    state: RunState
    slurm: SlurmState
    rounds: int
    rounds_done: int
    stages: tuple[StageView, ...]
    driver: DriverView
    jobs: tuple[Job, ...]
    left_seconds: float | None
    free_bytes: int
    last_event: Event | None
    last_error: Event | None
    hint: str
    plan: Plan = field(repr=False)
    time: float = 0.0


def look(run: RunDir) -> Snapshot:
    """Look at a run now.

    Raises:
        PlanError: the run has no plan.json that can be read.
    """
    plan = read_plan(run)
    events = Ledger(run.ledger_jsonl).read()
    history = read_history(events)
    uses_slurm = cluster_file(run).is_file()
    queue = _queue() if uses_slurm else []
    jobs = None if queue is None else run_jobs(run, queue)
    driver = look_at_driver(run, events, queue)
    facts = Facts(run, history, jobs, driver, _accuracies(run, plan))
    stages = tuple(look_at_stage(stage, facts) for group in plan.groups() for stage in group)
    free = shutil.disk_usage(run.root).free
    if driver.state == "running" and not driver.paused and free < PROBE_BYTES:
        # On a full disk the driver cannot even write down that it waits.
        driver = replace(driver, paused=f"{run.root} is full")
    committed = [view.stage for view in stages if view.state == "committed"]
    state = _state(len(committed) == len(stages), driver, events)
    errors = [event for event in events if event.get("event") in ("failed", "rejected", "stopped")]
    return Snapshot(
        run=run,
        run_id=plan.run_id,
        label=_label(run),
        state=state,
        slurm="unused" if not uses_slurm else "silent" if jobs is None else "answers",
        rounds=plan.rounds,
        rounds_done=_rounds_done(plan, frozenset(committed)),
        stages=stages,
        driver=driver,
        jobs=tuple(jobs or ()),
        left_seconds=seconds_left(plan, history, committed, _under_way(stages, history)),
        free_bytes=free,
        last_event=events[-1] if events else None,
        last_error=errors[-1] if errors and state != "done" else None,
        hint=_hint(state, driver, stages, jobs is None),
        plan=plan,
        time=time.time(),
    )


def _queue() -> list[Job] | None:
    try:
        return my_jobs()
    except SlurmError:
        return None  # no Slurm on this host: as little is known as where it does not answer


def _state(complete: bool, driver: DriverView, events: Sequence[Event]) -> RunState:
    if complete and (driver.finished or driver.state in ("none", "queued")):
        return "done"
    if driver.state == "queued":
        return "pending"
    if driver.state == "unknown":
        # What the ledger says last has to do.
        if not any(event.get("event") == "driver-began" for event in events):
            return "pending"
        if driver.stopped:
            return "failed"
        return "paused" if driver.paused or driver.finished else "running"
    if driver.state == "running":
        return "paused" if driver.paused else "running"
    return "failed" if driver.stopped else "paused"


def _hint(state: RunState, driver: DriverView, stages: Sequence[StageView], silent: bool) -> str:
    stuck = [view for view in stages if view.stuck]
    if silent:
        return "Slurm does not answer; this is what the disk and the ledger say. Nothing is lost by waiting."
    if stuck and state != "done":
        return f"{stuck[0].stage} will not start by itself: {stuck[0].todo}"
    if state == "failed":
        return "mend the cause, then `make resume`: what is committed stays"
    if state == "paused" and driver.paused:
        return f"the driver waits: {driver.paused}"
    if state == "paused":
        busy = sum(view.state in ("running", "queued") for view in stages)
        still = f"; {busy} stage jobs still go on by themselves" if busy else ""
        return f"no driver is at work{still}: `make resume` goes on where it was"
    if state == "pending":
        return driver.todo
    return ""


def _label(run: RunDir) -> str:
    try:
        config = read_run(run.root)
    except LadaError:
        return ""  # of another version; the rest can still be told
    shots = "one" if config.shots else "zero"
    return (
        f"scenario {config.scenario}, {config.method_label}, {config.dataset.name}, {shots}-shot, "
        f"seed {config.seed}, {config.tier} tier, size {config.size}"
    )


def _rounds_done(plan: Plan, committed: frozenset[Stage]) -> int:
    open_rounds = {stage.round for group in plan.groups() for stage in group if stage not in committed}
    return min(open_rounds - {0}, default=plan.rounds + 1) - 1 if 0 not in open_rounds else 0


def _accuracies(run: RunDir, plan: Plan) -> dict[Stage, float]:
    """Accuracy in per cent, at the last stage that a party has in a round."""
    if not run.metrics_csv.is_file():
        return {}
    try:
        rows = read_metrics(run.metrics_csv)
    except LadaError:
        return {}
    last = {(stage.round, stage.party): stage for group in plan.groups() for stage in group}
    found = {(row["round"], row["party"]): row["value"] for row in rows if row["metric"] == "accuracy"}
    return {last[key]: round(100 * value, 4) for key, value in found.items() if key in last}


def _under_way(stages: Sequence[StageView], history: History) -> dict[Stage, float]:
    found = {}
    for view in stages:
        attempts = history.get(str(view.stage), ())
        if view.state != "running" or not attempts:
            continue
        began = attempts[-1].began
        if view.elapsed:
            found[view.stage] = elapsed_seconds(view.elapsed)
        elif began is not None:
            found[view.stage] = max(0.0, time.time() - began)
    return found


def elapsed_seconds(text: str) -> float:
    """Seconds of a time as Slurm writes it: ``5:03``, ``1:02:03``, ``2-01:02:03``; 0 where it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return 0.0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
