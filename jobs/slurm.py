"""Slurm's commands, and what they say about a run's jobs.

What Slurm says is a hint, the commit is the truth. A job that one command does not know is not over: squeue
is asked, then scontrol, then sacct, and where none can tell the answer is "unknown", never "failed"
(reliability C4).
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lada.errors import LadaError
from lada.rundir import RunDir, Stage

TIMEOUT_SECONDS = 60.0
SEPARATOR = "\x1f"
FIELDS = ("%i", "%j", "%T", "%r", "%k", "%N", "%M", "%l")
OVER = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
    "REVOKED",
)
"""States after which a job is over."""
DRIVER = "driver"


class SlurmError(LadaError):
    """A Slurm command is not there, or refused what was asked."""

    exit_code = 13


@dataclass(frozen=True)
class Job:
    """A job in the queue.

    Attributes:
        nodes: where it runs, empty before. elapsed, limit: as squeue prints them.
    """

    id: str
    name: str
    state: str
    reason: str
    comment: str
    nodes: str
    elapsed: str
    limit: str


@dataclass(frozen=True)
class Verdict:
    """What Slurm knows of a job.

    Attributes:
        known: ``live`` (queued or running), ``over``, ``gone`` (every command that answered has no such job),
            or ``unknown`` (no answer, or a contradiction).
        state: Slurm's word. exit_code: as Slurm prints it, e.g. ``0:9``.
    """

    known: Literal["live", "over", "gone", "unknown"]
    state: str = ""
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""


def command(
    arguments: Sequence[str], *, timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command; a timeout is an exit code of 124, never an exception.

    Raises:
        SlurmError: where the program is not there.
    """
    if shutil.which(arguments[0]) is None:
        raise SlurmError(f"no program '{arguments[0]}' here: is this a host of a Slurm cluster?")
    try:
        # What a user sets for looking at the queue must not hide jobs from the driver.
        hiding = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(hiding)}
        return subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=timeout, env=plain
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 124, "", f"no answer within {timeout:g} s")


# -- names


def job_name(run: RunDir, stage: Stage | None) -> str:
    """Name of a stage's job, or of the driver's: the same for every attempt, so that only one runs.

    It ends with a hash of the run's folder: the same run in two folders must not wait for itself.
    """
    what = DRIVER if stage is None else f"{stage.name}.{stage.party}"
    return f"{run.root.name}.{what}.{_folder_hash(run)[:6]}"


def run_mark(run: RunDir) -> str:
    """What a job's comment holds of its run: this very folder."""
    return f"lada:{_folder_hash(run)}"


def _folder_hash(run: RunDir) -> str:
    return hashlib.sha256(str(run.root.resolve()).encode()).hexdigest()[:12]


def comment(run: RunDir, attempt: str) -> str:
    """Comment of a job: run and attempt."""
    return f"{run_mark(run)}:{attempt}"


def attempt_of(job: Job) -> str:
    """The attempt that a job's comment states."""
    return job.comment.rpartition(":")[2]


# -- what is in the queue


def my_jobs() -> list[Job] | None:
    """Every queued or running job of the calling user; None where Slurm does not answer."""
    named = ["--user", getpass.getuser(), "--format", SEPARATOR.join(FIELDS)]
    done = command(["squeue", "--all", "--noheader", *named])
    if done.returncode:
        return None
    lines = (line.split(SEPARATOR) for line in done.stdout.splitlines())
    return [Job(*(field.strip() for field in line)) for line in lines if len(line) == len(FIELDS)]


def run_jobs(run: RunDir, jobs: Collection[Job] | None = None) -> list[Job] | None:
    """The jobs of this very run folder, the driver's too; None where Slurm does not answer.

    Args:
        jobs: what `my_jobs` returned a moment ago; None: ask now.
    """
    found = my_jobs() if jobs is None else jobs
    mark = run_mark(run) + ":"
    return None if found is None else [job for job in found if job.comment.startswith(mark)]


# -- what became of a job


def probe(ids: Collection[str], queue: Collection[Job] | None = None) -> dict[str, Verdict]:
    """What Slurm knows of each job: squeue, then scontrol, then sacct.

    Args:
        queue: what `my_jobs` returned a moment ago; None: ask now.
    """
    if not ids:
        return {}
    queue = my_jobs() if queue is None else queue
    queued = {job.id: job for job in queue or ()}
    found = {}
    for one in ids:
        job = queued.get(one)
        if job is None:
            found[one] = _not_queued(one, queue_answered=queue is not None)
        else:
            known: Literal["live", "over"] = "over" if job.state in OVER else "live"
            found[one] = Verdict(known, job.state, job.reason, nodes=job.nodes)
    return found


def _not_queued(job_id: str, *, queue_answered: bool) -> Verdict:
    controller = _from_controller(job_id)
    if controller.known in ("live", "over"):
        return controller
    accounts = _from_accounts(job_id)
    if accounts.known == "over":
        return accounts
    # Accounts lag behind: what they call live while the controller knows nothing of it stays open.
    if accounts.known in ("gone", "unknown") and controller.known == "gone" and queue_answered:
        return Verdict("gone")
    return Verdict("unknown", accounts.state)


def _from_controller(job_id: str) -> Verdict:
    done = command(["scontrol", "show", "job", "--oneliner", job_id])
    if done.returncode:
        return Verdict("gone" if "Invalid job id" in done.stderr else "unknown")
    fields = dict(re.findall(r"(\S+?)=(\S*)", done.stdout))
    state = fields.get("JobState", "")
    if not state:
        return Verdict("unknown")
    nodes = fields.get("NodeList", "")
    return Verdict(
        "over" if state in OVER else "live",
        state,
        fields.get("Reason", ""),
        fields.get("ExitCode", ""),
        "" if nodes == "(null)" else nodes,
    )


def _from_accounts(job_id: str) -> Verdict:
    """The newest record of a job in the accounts; unknown where there are none (no slurmdbd)."""
    if shutil.which("sacct") is None:
        return Verdict("unknown")
    columns = "State,Reason,ExitCode,NodeList"
    done = command(["sacct", "-X", "-n", "-P", "-j", job_id, "-o", columns])
    if done.returncode:
        return Verdict("unknown")
    lines = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == columns.count(",")]
    if not lines:
        return Verdict("gone")
    state, reason, code, nodes = lines[-1]
    word = state.split()[0] if state else ""  # "CANCELLED by 1000"
    return Verdict("over" if word in OVER else "live", word, reason, code, nodes)


def node_states(nodes: str) -> str:
    """States of a node list, e.g. ``down*`` or ``idle``, commas between; empty where Slurm does not tell."""
    if not nodes:
        return ""
    done = command(["sinfo", "--noheader", "--Node", "--nodes", nodes, "--format", "%t"])
    return ",".join(sorted(set(done.stdout.split()))) if done.returncode == 0 else ""


# -- acting on jobs


def cancel(ids: Collection[str]) -> bool:
    """Cancel jobs; those that are over already are left alone. Returns whether Slurm took the order."""
    return not ids or command(["scancel", *sorted(ids)]).returncode == 0


def requeue(job_id: str) -> bool:
    """Put a running job back into the queue; whether Slurm did."""
    return command(["scontrol", "requeue", job_id]).returncode == 0


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """Inside, the environment is that of no job: what is submitted must not inherit the driver job's own.

    Unlike submitit's own helper it keeps where Slurm's configuration lies.
    """
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI", "PMIX_")
    inherited = [name for name in os.environ if name.startswith(prefixes) and name != "SLURM_CONF"]
    # A test that kills the driver means the driver, not its stages.
    taken = {name: os.environ.pop(name) for name in (*inherited, "LADA_CRASH_AT") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def submit(arguments: Sequence[str]) -> str:
    """sbatch; returns the job's id.

    Raises:
        SlurmError: with what sbatch said.
    """
    with outside_job():
        done = command(["sbatch", "--parsable", *arguments])
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise SlurmError(f"sbatch refused (exit code {done.returncode}): {said}")
    return done.stdout.strip().split(";")[0]
