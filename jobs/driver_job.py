"""`python -m jobs drive` and `round`: the driver's loop, as a job or on a login node (`make drive`)."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from jobs import slurm
from jobs.cluster import Cluster, find_cluster, read_cluster
from jobs.host import check_unchanged, ensure_image
from jobs.launch import Local
from jobs.select import find_run
from jobs.slurm_launcher import Slurm
from jobs.submit import (
    ASKED,
    add_asked,
    add_no_reuse,
    asked_from_environment,
    driver_is_gone,
    heed_no_reuse,
    is_finished,
    make_run,
    open_existing,
)
from lada.driver import Driver
from lada.errors import ConfigError, LadaError
from lada.faults import aim_at_driver
from lada.layers import read_run
from lada.lease import lease
from lada.ledger import Ledger
from lada.plan import read_plan
from lada.rundir import RunDir
from lada.space import can_write


class Warned(KeyboardInterrupt):
    """The driver's own time limit is near; everything that it does may be interrupted anywhere."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `drive` and `round`."""
    drive = commands.add_parser("drive", help="walk a run's rounds to its end, here and now")
    drive.add_argument("--run", help="the run's folder or id; default: the newest")
    drive.add_argument("--runs", default="runs")
    add_no_reuse(drive)
    drive.set_defaults(command=_drive)
    one = commands.add_parser("round", help="one round of a run and out")
    one.add_argument("--run", help="the run's folder or id; default: RUN in the environment, or the newest")
    one.set_defaults(command=_round)


def _drive(options: argparse.Namespace) -> int:
    heed_no_reuse(options)
    run = find_run(options.run, options.runs)
    return drive(run, read_cluster(run), rounds=None)


def _round(options: argparse.Namespace) -> int:
    run = _this_round(options.run or os.environ.get("RUN"))
    print(f"Run folder: {run.root}", flush=True)
    group = next(read_plan(run).pending(run.is_committed), None)
    if is_finished(run):
        print(f"Nothing is left to do: every stage is committed. Results: {run.metrics_csv}")
        return 0
    return drive(run, read_cluster(run), rounds=None if group is None else group[0].round)


def _this_round(named: str | None) -> RunDir:
    """The run that a round job means: RUN=, the one that SCENARIO= and the like name, or the newest.

    Choice: where there is no run at all, scenario 1 is begun with the defaults.
    """
    parser = argparse.ArgumentParser()
    add_asked(parser)
    asked = asked_from_environment(dict(os.environ))
    options = parser.parse_args(asked)
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
        options.fresh = False  # it was set aside before this job was requeued
    if named is None and not {f"--{name}" for name in (*ASKED, "set")} & set(asked):
        try:
            named = str(find_run(None, options.runs).root)
        except ConfigError:
            options.scenario = "1"
    if named is None:
        cluster = find_cluster(options.cluster)
        ensure_image(cluster)
        return make_run(options, cluster)
    run = find_run(named, options.runs)
    cluster = find_cluster(options.cluster) if options.cluster else _cluster_of(run)
    return open_existing(run, cluster, amend=options.amend)


def _cluster_of(run: RunDir) -> Cluster:
    """The cluster that a run knows; for a run that was only ever driven in-process, the one that is here."""
    try:
        return read_cluster(run)
    except ConfigError:
        return find_cluster(None)


def drive(run: RunDir, cluster: Cluster, *, rounds: int | None) -> int:
    """Drive a run with stages as jobs, or inside this allocation; returns an exit code.

    Raises:
        BusyError: when another driver is at work.
        ChangedError: when code, image or run.yaml changed since the run began.
        StageError: when a stage failed for good.
    """
    aim_at_driver()
    continued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    report = _report
    launcher, stop = _launcher(run, cluster, report)
    try:
        signal.signal(signal.SIGUSR2, _warn)
        while not can_write(run.root):
            report(f"paused: {run.root} is full; the run goes on by itself when there is space")
            time.sleep(max(1.0, cluster.patience.poll_seconds))
    except Warned:
        return _again(run)
    with lease(run.lease, gone=driver_is_gone) as check:
        try:
            _note_refusal(run, lambda: check_unchanged(run, cluster))
            driver = Driver(
                run,
                launcher,
                report=report,
                poll_seconds=cluster.patience.poll_seconds,
                free_bytes=int(cluster.patience.free_gb * 1e9),
                continued=continued,
                check=check,
                reuse=os.environ.get("REUSE") != "0",  # also of the driver's job: sbatch hands it on
            )
            worked = driver.drive(rounds=rounds)
        except Warned:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            report("the time limit is near: the stages go on, the driver is to be started again")
            with contextlib.suppress(OSError):
                Ledger(run.ledger_jsonl).write("driver-warned")
            return _again(run)
        except KeyboardInterrupt:
            report("interrupted; the same command goes on where it was")
            return 130
        finally:
            stop()
    left = next(read_plan(run).pending(run.is_committed), None)
    report("this round is done" if left else f"the run is done: {run.metrics_csv}")
    if not worked:
        report("nothing was left to do")
    return 0


def _launcher(
    run: RunDir, cluster: Cluster, report: Callable[[str], None]
) -> tuple[Slurm | Local, Callable[[], None]]:
    if cluster.stages == "sbatch":
        unchanged = partial(check_unchanged, run, cluster)
        return Slurm(run, cluster, report=report, before_start=unchanged), lambda: None
    # Stages inside this allocation cannot outlive it, and share its GPUs.
    has_gpus = any(line.gpus for line in cluster.resources_of(read_run(run.root)).values()) and cluster.nvidia
    inside = Local(run, cluster=cluster, width=1 if has_gpus else None)
    return inside, inside.stop


def _again(run: RunDir) -> int:
    """Put this job back into the queue; outside one, say what to do."""
    job = os.environ.get("SLURM_JOB_ID")
    for _ in range(10 if job else 0):
        if slurm.requeue(str(job)):
            time.sleep(120)  # Slurm takes the job away meanwhile
            break
        time.sleep(10)  # the controller may be away
    _report(f"not requeued: make resume RUN={run.root}")
    return 85


def _warn(number: int, frame: FrameType | None) -> None:
    raise Warned


def _note_refusal(run: RunDir, check: Callable[[], None]) -> None:
    """Let status see why a driver refused to begin."""
    try:
        check()
    except LadaError as error:
        Ledger(run.ledger_jsonl).write("stopped", reason=str(error)[-2000:], exit_code=error.exit_code)
        raise


def _report(line: str) -> None:
    # The log may lie on the very disk that is full: what cannot be said must not end the driver.
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stdout.flush()
