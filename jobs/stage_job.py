"""What a job runs on its node: one stage as a command, its exit code and last words left in a file.

Here, outside the image, signals are handled and jobs requeued: there is no Slurm inside. The driver reads the
exit file and the run's commits. It never asks submitit for a result, which would unpickle what the job wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from jobs import slurm
from jobs.cluster import ROOT, read_cluster
from jobs.container import (
    container_argv,
    container_environment,
    scratch_folder,
    stage_binds,
    stage_command,
)
from jobs.failures import ExitRecord
from lada.errors import LadaError
from lada.faults import stage_crash
from lada.layers import read_run
from lada.plan import read_plan
from lada.rundir import RunDir, Stage, parse_stage

TAIL = 2000
PAUSED = 85
"""Exit code of a stage that saved a resume point."""
UNPREPARED = 128 + signal.SIGUSR2
"""Exit code of a stage that was warned before it could listen."""
FILES_LOST = (128 + signal.SIGBUS, -signal.SIGBUS)
"""Exit codes of a stage whose image went away: what served its files may have ended of the warning."""
MAX_REQUEUES = 3
"""A job puts itself back so often; then its driver gives the next one more time, lest none ever gets far."""
REQUEUE_SECONDS = 120
"""How long a job waits to be taken away after it asked to be requeued."""


def exit_file(run: RunDir, stage: Stage, attempt: str) -> Path:
    """Where the exit code of an attempt is left."""
    return submitit_folder(run, stage.party) / f"{stage.name}.{attempt}.exit.json"


def submitit_folder(run: RunDir, party: str) -> Path:
    """Where submitit keeps its own files of a party's jobs."""
    return run.root / "logs" / "submitit" / party


def run_command(command: list[str], log: str, exit_file: str) -> int:
    """Run a stage's command without a container; returns its exit code.

    Args:
        command: argument vector.
        log: file that its output is appended to.
        exit_file: JSON with ``exit_code`` and ``detail``, written whole or not at all.
    """
    began = time.time()
    code = _Child(command, dict(os.environ), Path(log)).wait()
    write_exit(Path(exit_file), ExitRecord(code, _last_line(Path(log), code), _node(), began, time.time()))
    return code


def run_in_container(run: str, party: str, stage: str, attempt: str, divisor: int) -> None:
    """Run one stage in the run's image; the process ends with the stage's exit code.

    Args:
        run: the run's folder.
        attempt: as the driver named it; a requeued job adds its restart count.
        divisor: of the micro-batch.
    """
    folder, job = RunDir(Path(run)), dict(os.environ)
    which = parse_stage(stage, party)
    restarts = int(job.get("SLURM_RESTART_COUNT") or 0)
    node_rank = int(job.get("SLURM_NODEID") or 0)
    began = time.time()
    if folder.is_committed(which):  # requeued, or a second copy of this job, after the work was done
        write_exit(exit_file(folder, which, attempt), ExitRecord(0, "", _node(), began, began, restarts))
        return
    suffix = f"-{restarts}" + (f".node{node_rank}" if node_rank else "")
    try:
        with scratch_folder(job) as scratch:
            argv, environment = _container(folder, which, f"{attempt}-{restarts}", divisor, scratch)
            crash = stage_crash(str(which), attempt)
            if crash is not None and not restarts:
                environment["APPTAINERENV_LADA_CRASH_AT"] = crash
            child = _Child(argv, environment, folder.log(party, which, attempt + suffix))
            code = child.wait()
    except (LadaError, OSError) as error:
        # Not the error's own exit code: what is wrong may be wrong on this node alone.
        said = f"{type(error).__name__}: {error}"
        write_exit(
            exit_file(folder, which, attempt), ExitRecord(1, said, _node(), began, time.time(), restarts)
        )
        sys.exit(said)
    record = ExitRecord(code, "", _node(), began, time.time(), restarts)
    if node_rank == 0:
        _finish(folder, which, attempt, child, record)
    elif _has_paused(child, record):
        time.sleep(REQUEUE_SECONDS)  # srun ends the whole step with its first task that fails
    sys.exit(code if code >= 0 else 128 - code)


def _has_paused(child: _Child, record: ExitRecord) -> bool:
    """Whether a stage ended because it was warned, with a resume point or before it could save one."""
    if record.exit_code in (PAUSED, UNPREPARED, -signal.SIGUSR2):
        return True
    return child.warned and record.exit_code in FILES_LOST


def _finish(run: RunDir, stage: Stage, attempt: str, child: _Child, record: ExitRecord) -> None:
    """Leave the exit file; a stage that saved a resume point goes back into the queue."""
    path = exit_file(run, stage, attempt)
    detail = _last_line(child.log, record.exit_code)
    job = os.environ.get("SLURM_JOB_ID")
    on_slurm = job is not None and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    paused = _has_paused(child, record)
    again = paused and on_slurm and not child.terminated and record.restarts < MAX_REQUEUES
    content = asdict(record) | {"detail": detail, "exit_code": PAUSED if paused else record.exit_code}
    write_exit(path, ExitRecord(**content | {"requeued": again}))
    if again and job is not None:
        if slurm.requeue(job):
            time.sleep(REQUEUE_SECONDS)
        write_exit(path, ExitRecord(**content))


def _container(
    run: RunDir, stage: Stage, attempt: str, divisor: int, scratch: Path
) -> tuple[list[str], dict[str, str]]:
    cluster, config = read_cluster(run), read_run(run.root)
    resources = cluster.resources_of(config)[stage.party]
    command = stage_command(
        run,
        stage,
        attempt,
        nodes=resources.nodes,
        ranks_per_node=resources.ranks_per_node,
        zero=resources.zero,
        micro_batch_divisor=divisor,
    )
    binds = stage_binds(run, stage.party, read_plan(run).parties, cluster, scratch=scratch)
    argv = container_argv(cluster, binds, command, pwd=ROOT)
    environment = container_environment(
        cluster,
        threads=config.numerics.threads,
        job=os.environ,
        checkpointing=resources.checkpointing,
        gpus=resources.gpus,
    )
    return argv, environment


@dataclass
class _Child:
    """A process whose output goes to a log, and which is told what this one is told.

    USR2 (time limit ahead) is passed on; TERM (somebody cancels, or preempts) as well, as USR2, so that the
    stage can save a resume point before it is killed.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    terminated: bool = False
    warned: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def wait(self) -> int:
        """Run it to its end; returns its exit code."""
        signal.signal(signal.SIGUSR2, self._warn)
        signal.signal(signal.SIGTERM, self._terminate)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
            )
            try:
                return self._process.wait()
            finally:
                self._process.kill()  # where an interrupt ends the wait; else it is over already

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.warned = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR2)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        self._warn(number, frame)


def write_exit(path: Path, record: ExitRecord) -> None:
    """Leave an exit record where the driver looks, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
    temporary.replace(path)


def read_exit(path: Path) -> ExitRecord | None:
    """What `write_exit` left, or None while there is nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ExitRecord(**content)


def _last_line(log: Path, code: int) -> str:
    if code == 0:
        return ""
    text = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
