"""`make submit`, `resume`, `cancel`: a run's driver as a job. The same command again is a resume."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import slurm
from jobs.batch import gpu_parameters
from jobs.cluster import ROOT, Cluster, find_cluster, read_cluster, write_cluster
from jobs.container import prepare_folders
from jobs.host import ensure_image, facts, run_lada
from jobs.select import find_run
from lada.errors import BusyError
from lada.layers import read_run
from lada.lease import Owner, lease, read_owner
from lada.ledger import Ledger
from lada.plan import read_plan
from lada.rundir import RunDir, set_aside

ASKED = ("scenario", "method", "dataset", "data", "shots", "seed", "size", "tier")
"""Options that name a run, handed on to `lada init` as they are."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `submit`, `resume` and `cancel`."""
    submit = commands.add_parser("submit", help="make or resume a run and submit its driver")
    add_asked(submit)
    add_no_reuse(submit)
    submit.add_argument("--models", help="folder of models, instead of the cluster file's (paper tier)")
    submit.set_defaults(command=_submit)
    resume = commands.add_parser("resume", help="submit the driver of a run that is there")
    resume.add_argument("--run", help="the run's folder or id; default: the newest")
    resume.add_argument("--runs", default="runs")
    resume.add_argument("--cluster", help="another cluster file than the one it was submitted with")
    resume.add_argument("--amend", action="store_true", help="go on although code, image or run.yaml changed")
    resume.set_defaults(command=_resume)
    cancel = commands.add_parser("cancel", help="cancel a run's driver and stages; resume goes on later")
    cancel.add_argument("--run", help="the run's folder or id; default: the newest")
    cancel.add_argument("--runs", default="runs")
    cancel.set_defaults(command=_cancel)


def add_asked(parser: argparse.ArgumentParser) -> None:
    """The options that name a run which may not be there yet."""
    for name in ASKED:
        parser.add_argument(f"--{name}")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--runs", default="runs", help="folder of all runs, on the shared file system")
    parser.add_argument("--cluster", help="name in configs/clusters, or a YAML file")
    parser.add_argument("--amend", action="store_true", help="go on although code, image or run.yaml changed")
    parser.add_argument("--fresh", action="store_true", help="set an existing run aside and start anew")


def add_no_reuse(parser: argparse.ArgumentParser) -> None:
    """The option that has local training computed anew; as REUSE=0 in the environment it reaches a job."""
    parser.add_argument(
        "--no-reuse", action="store_true", help="compute local training anew, keep it for none"
    )


def heed_no_reuse(options: argparse.Namespace) -> None:
    """Hand `add_no_reuse`'s option on to whatever this process starts."""
    if options.no_reuse:
        os.environ["REUSE"] = "0"


def _submit(options: argparse.Namespace) -> int:
    heed_no_reuse(options)
    cluster = find_cluster(options.cluster)
    if options.models:
        cluster = cluster.model_copy(update={"models": str(Path(options.models).resolve())})
    ensure_image(cluster)
    return submit_driver(make_run(options, cluster), cluster)


def _resume(options: argparse.Namespace) -> int:
    run = find_run(options.run, options.runs)
    cluster = find_cluster(options.cluster) if options.cluster else read_cluster(run)
    open_existing(run, cluster, amend=options.amend)
    return submit_driver(run, cluster)


def make_run(options: argparse.Namespace, cluster: Cluster) -> RunDir:
    """The run's folder, made in the image if it is not there yet, with the cluster's facts in it.

    Raises:
        LadaError: as `lada init` says it: a wrong option, or something that changed.
    """
    arguments = asked_arguments(options)
    runs = Path(options.runs).resolve()
    if options.fresh:
        _set_aside(options, cluster, runs)
    if options.amend:
        arguments.append("--amend")
    command = ["init", *arguments, "--runs", str(runs), "--facts", facts(cluster)]
    run = RunDir(
        Path(run_lada(cluster, command, runs=runs, files=asked_files(options)).strip().splitlines()[-1])
    )
    return _equip(run, cluster)


def _set_aside(options: argparse.Namespace, cluster: Cluster, runs: Path) -> None:
    """Move an existing run out of the way: here, since only the host sees whether somebody works on it.

    Raises:
        BusyError: when a driver or a stage of it is at work.
    """
    runs.mkdir(parents=True, exist_ok=True)
    shown = run_lada(cluster, ["plan", *asked_arguments(options)], runs=runs, files=asked_files(options))
    run = RunDir(runs / json.loads(shown)["plan"]["run_id"])
    if not run.root.exists():
        return
    live = slurm.run_jobs(run)
    if live is None or live:
        who = "Slurm does not say" if live is None else ", ".join(f"job {job.id} {job.name}" for job in live)
        raise BusyError(f"{run.root.name} may be at work ({who}); `make cancel RUN={run.root}` ends it")
    with lease(run.lease, gone=driver_is_gone):
        print(f"The old run is now {set_aside(run.root)}")


def driver_is_gone(owner: Owner) -> bool:
    """Whether the driver that holds a lease on another host is over, as Slurm knows it."""
    job = owner.get("job")
    if not job:
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        return True  # this very job, before it was requeued
    return slurm.probe([str(job)])[str(job)].known in ("over", "gone")


def asked_arguments(options: argparse.Namespace) -> list[str]:
    """What `add_asked` took, as arguments of `lada init` and `lada plan`."""
    named = [
        (f"--{name}", str(getattr(options, name))) for name in ASKED if getattr(options, name) is not None
    ]
    named += [("--set", text) for text in options.set]
    return [part for pair in named for part in pair]


def asked_files(options: argparse.Namespace) -> list[Path]:
    """Files that these options name, e.g. a scenario of one's own; the container has to see them."""
    named = [
        getattr(options, name) for name in ASKED if str(getattr(options, name)).endswith((".yaml", ".yml"))
    ]
    return [Path(one).resolve() for one in (options.data, *named) if one]


def open_existing(run: RunDir, cluster: Cluster, *, amend: bool) -> RunDir:
    """A run that is there, checked against what it began with.

    Raises:
        LadaError: as `lada check` says it: code, packages, weights, image or run.yaml changed.
    """
    arguments = ["check", "--run", str(run.root), "--facts", facts(cluster), *(["--amend"] if amend else [])]
    run_lada(cluster, arguments, runs=run.root.parent)
    return _equip(run, cluster)


def _equip(run: RunDir, cluster: Cluster) -> RunDir:
    write_cluster(run, cluster)
    prepare_folders(run, read_plan(run).parties)
    cluster.resources_of(read_run(run.root))  # a model without any is refused now, not in the third round
    return run


def submit_driver(run: RunDir, cluster: Cluster) -> int:
    """Submit the driver of a run unless one is queued or at work, or nothing is left to do."""
    print(f"Run folder: {run.root}")
    if is_finished(run):
        print(f"Nothing is left to do: every stage is committed. Results: {run.metrics_csv}")
        return 0
    live = [job for job in slurm.run_jobs(run) or () if job.name == slurm.job_name(run, None)]
    if live:
        print(f"Its driver is job {live[0].id} already ({live[0].state}).")
        return 0
    (run.root / "logs" / slurm.DRIVER).mkdir(parents=True, exist_ok=True)
    os.environ["LADA_PYTHON"] = sys.executable
    job = slurm.submit(driver_options(run, cluster))
    Ledger(run.ledger_jsonl).write("driver-submitted", job=job)
    print(f"Driver submitted as job {job}. Look on: make watch   make status   make logs PARTY=driver")
    return 0


def is_finished(run: RunDir) -> bool:
    """Whether every stage is committed and a driver has seen to what follows: messages and results."""
    if next(read_plan(run).pending(run.is_committed), None) is not None or not run.metrics_csv.is_file():
        return False
    return Ledger(run.ledger_jsonl).says_finished()


def driver_options(run: RunDir, cluster: Cluster) -> list[str]:
    """Arguments of sbatch for the driver's job."""
    logs = run.root / "logs" / slurm.DRIVER
    asked = {
        "job-name": slurm.job_name(run, None),
        "comment": slurm.comment(run, slurm.DRIVER),
        "dependency": "singleton",
        "partition": cluster.driver.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.driver.minutes,
        "mem": f"{round(cluster.driver.memory_gb * 1024)}M",
        "constraint": cluster.constraint,
        **_room_for_stages(run, cluster),
        **{name: value for name, value in cluster.sbatch.items() if value is not True},
        "chdir": ROOT,
        "output": logs / "%j.log",
    }
    listed = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    flags = [f"--{name}" for name, value in cluster.sbatch.items() if value is True]
    return [*listed, *flags, str(ROOT / "slurm" / "driver.sbatch"), str(run.root)]


def _room_for_stages(run: RunDir, cluster: Cluster) -> dict[str, object]:
    """What the driver's job asks for in addition where stages run inside it: room for the largest."""
    if cluster.stages != "inside":
        return {}
    lines = cluster.resources_of(read_run(run.root))
    largest = max(lines.values(), key=lambda line: (line.gpus, line.memory_gb, line.cpus))
    gpus = {name.replace("_", "-"): value for name, value in gpu_parameters(largest, cluster).items()}
    memory = cluster.driver.memory_gb + largest.memory_gb
    return {"cpus-per-task": largest.cpus, "mem": f"{round(memory * 1024)}M", **gpus}


def _cancel(options: argparse.Namespace) -> int:
    run = find_run(options.run, options.runs)
    jobs = slurm.run_jobs(run)
    if jobs is None:
        print("Slurm does not answer; nothing was cancelled", file=sys.stderr)
        return slurm.SlurmError.exit_code
    # The driver first, or it would start again what is cancelled under its hands.
    jobs.sort(key=lambda job: (job.name != slurm.job_name(run, None), job.id))
    named = [(job.id, job.name) for job in jobs]
    # A round's job has no name of the run; the lease knows it.
    owner = read_owner(run.lease) or {}
    if "job" in owner and owner["job"] not in dict(named):
        named.insert(0, (owner["job"], "that drives it"))
    for job_id, name in named:
        slurm.cancel([job_id])
        print(f"cancelled job {job_id} {name}")
    Ledger(run.ledger_jsonl).write("cancelled", jobs=[job_id for job_id, _ in named])
    if not named:
        print(f"{run.root.name} has no jobs in the queue")
    return 0


def asked_from_environment(environment: dict[str, str]) -> Sequence[str]:
    """Options that SCENARIO=, METHOD=, … in the environment stand for, as a round job has them."""
    found = []
    for name in (*ASKED, "set", "cluster", "runs"):
        value = environment.get(name.upper())
        if value:
            found += [f"--{name}", value]
    return found + [flag for flag in ("--amend", "--fresh") if environment.get(flag[2:].upper())]
