"""Launcher on submitit's Slurm executor: each attempt of a stage is a job of its own.

A job's name is the same for every attempt of its stage, with ``--dependency=singleton``: should two ever be
submitted, the second waits for the first, then finds the commit. A stage that has a live job is adopted, not
started twice. submitit renders and submits; what became of a job is asked of Slurm and of the commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from jobs import slurm
from jobs.batch import job_parameters
from jobs.cluster import Cluster
from jobs.failures import classify
from jobs.slurm import Job, SlurmError, Verdict
from jobs.stage_job import exit_file, read_exit, run_in_container, submitit_folder
from lada.driver import Ended
from lada.faults import crash_point
from lada.layers import read_run
from lada.policy import Cause, Change
from lada.rundir import RunDir, Stage
from lada.space import can_write

TRANSIENT = (
    "Unable to contact",
    "timed out",
    "Connection refused",
    "Connection reset",
    "Transport endpoint",
    "standby mode",
    "Zero Bytes",
    "temporarily",
    "try again",
    "MaxSubmitJob",
    "submit limit",
)
"""What sbatch says when the controller is away or a limit on queued jobs is reached; else it refuses."""
MISSES = 3
"""Looks at which a job was nowhere before it counts as ended: missing is not done."""
STALE_SECONDS = 90.0
"""How long a commit may stay invisible: longer than NFS keeps what it once saw of a folder (60 s)."""
HELD = ("held", "JobHeld")
TAIL = 4000


@dataclass
class _Live:
    stage: Stage
    attempt: str
    job: str
    since: float
    size: int = -1
    misses: int = 0
    state: str = ""
    node: str = ""
    hung: bool = False
    ended: float = 0.0
    began: float = 0.0
    told: set[str] = field(default_factory=set)


class Slurm:
    """Launcher on Slurm.

    Args:
        run: the run's folder, which every node sees.
        cluster: the site's facts.
        report: called with a line for a person.
        before_start: called before every submission; raises where the run may not go on.
    """

    def __init__(
        self,
        run: RunDir,
        cluster: Cluster,
        *,
        report: Callable[[str], None],
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._cluster, self._report = run, cluster, report
        self._before_start = before_start
        self._config = read_run(run.root)
        self._live: dict[Stage, _Live] = {}
        self._closing: dict[str, float] = {}
        """Jobs whose stage has committed, and when that was seen."""

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
        """Submit an attempt; waits while the controller is away.

        Raises:
            SlurmError: when sbatch refuses.
        """
        self._before_start()
        job, parameters = self._submit_some_way(stage, attempt, change)
        self._live[stage] = _Live(stage, attempt, job, time.monotonic())
        self._report(f"{stage} submitted as job {job}")
        line = self._cluster.resources_of(self._config)[stage.party]
        return {"job": job, "resources": _resources(parameters), **line.shared()}

    def adopt(self, stage: Stage) -> dict[str, Any] | None:
        """A live job of this stage and run folder; waits while the controller is away."""
        if stage not in self._live:
            found = self._find(slurm.job_name(self._run, stage))
            if found is None:
                return None
            self._live[stage] = _Live(stage, slurm.attempt_of(found), found.id, time.monotonic())
        live = self._live[stage]
        return {"job": live.job, "attempt": live.attempt}

    def poll(self) -> list[Ended]:
        """Attempts that ended since the last call; none while Slurm does not answer."""
        queue = slurm.my_jobs()
        queued = {job.id: job for job in queue or ()}
        ended = []
        for live in list(self._live.values()):
            end = self._look(live, queued.get(live.job), answered=queue is not None)
            if end is not None:
                del self._live[live.stage]
                ended.append(end)
        if queue is not None:
            self._close(queued)
        return ended

    # -- submission

    def _submit_some_way(self, stage: Stage, attempt: str, change: Change) -> tuple[str, dict[str, Any]]:
        """Submit; where a site refuses what a retry asks for, ask for less: any node, then no growth."""
        plain = Change(micro_batch_divisor=change.micro_batch_divisor)
        ways = list(dict.fromkeys((change, replace(change, exclude=()), plain)))
        for way in ways:
            parameters = job_parameters(self._run, self._config, self._cluster, stage, attempt, way)
            try:
                return self._submit(stage, attempt, way, parameters), parameters
            except SlurmError as error:
                if way == ways[-1]:
                    raise
                self._report(f"{error}; asking for less")
        raise AssertionError(ways)

    def _submit(self, stage: Stage, attempt: str, change: Change, parameters: Mapping[str, Any]) -> str:
        folder = submitit_folder(self._run, stage.party)
        executor = submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**parameters)
        named = (str(self._run.root), stage.party, stage.name, attempt, change.micro_batch_divisor)
        while True:
            try:
                crash_point("launch.submitting")
                with slurm.outside_job():
                    job = executor.submit(run_in_container, *named).job_id
                crash_point("launch.submitted")
                return str(job)
            except (FailedJobError, FailedSubmissionError) as error:
                said = str(error)
            # The reply may be lost though the job was accepted: its name and comment tell.
            found = self._find(slurm.job_name(self._run, stage), attempt)
            if found is not None:
                return found.id
            if not any(words in said for words in TRANSIENT):
                raise SlurmError(f"{stage}: sbatch refused: {said.strip()[-TAIL:]}")
            self._report("Slurm's controller does not answer: trying again")
            self._wait()

    def _find(self, name: str, attempt: str | None = None) -> Job | None:
        """The queued or running job of this name and run folder; waits while Slurm does not answer."""
        while (jobs := slurm.run_jobs(self._run)) is None:
            self._report("Slurm does not answer: waiting")
            self._wait()
        fitting = [
            job
            for job in jobs
            if job.name == name and job.state not in slurm.OVER and job.state != "COMPLETING"
        ]
        return next((job for job in fitting if attempt in (None, slurm.attempt_of(job))), None)

    def _wait(self) -> None:
        time.sleep(max(1.0, self._cluster.patience.poll_seconds))

    # -- what became of a job

    def _look(self, live: _Live, job: Job | None, *, answered: bool) -> Ended | None:
        if self._run.is_committed(live.stage):
            self._closing[live.job] = time.monotonic()
            return self._ended(live, Verdict("over", "COMPLETED"), committed=True)
        if job is not None and job.state not in slurm.OVER:
            live.misses = 0
            return self._watch(live, job)
        if not answered:
            return None
        verdict = slurm.probe([live.job], queue=())[live.job]
        if verdict.known == "over" and not self._may_show_up(live):
            return self._ended(live, verdict)
        if verdict.known == "gone":
            live.misses += 1
            return self._ended(live, verdict) if live.misses >= MISSES else None
        return self._silent(live, verdict)

    def _silent(self, live: _Live, verdict: Verdict) -> Ended | None:
        """A job that Slurm contradicts itself about is judged by its log; unknown is not failed."""
        if not self._is_stuck(live):
            return None
        self._report(f"{live.stage}: nobody knows what became of job {live.job}, and it shows no progress")
        slurm.cancel([live.job])
        return self._ended(live, Verdict("over", "NODE_FAIL", nodes=verdict.nodes or live.node))

    def _is_stuck(self, live: _Live) -> bool:
        """Whether its log has had no new line for too long."""
        now, size = time.monotonic(), self._log_size(live)
        if size != live.size:
            live.size, live.since = size, now
        return now - live.since > 60 * self._cluster.patience.hang_minutes

    def _may_show_up(self, live: _Live) -> bool:
        """Whether a stage says that it committed, and a slow file system may not show it yet."""
        record = read_exit(exit_file(self._run, live.stage, live.attempt))
        if record is None or record.exit_code:
            return False
        live.ended = live.ended or time.monotonic()
        return time.monotonic() - live.ended < STALE_SECONDS

    def _watch(self, live: _Live, job: Job) -> Ended | None:
        """A job that is queued or runs: whether it is stuck."""
        now, patience = time.monotonic(), self._cluster.patience
        if job.state != live.state:
            live.state, live.since = job.state, now
            live.began = now if job.state == "RUNNING" else live.began
        live.node = job.nodes or live.node
        if job.state == "RUNNING":
            if self._is_stuck(live) and not live.hung:
                self._report(f"{live.stage} shows no progress: cancelling job {live.job} on {live.node}")
                live.hung = slurm.cancel([live.job])
            return None
        if "launch failed" in job.reason:
            # A node refused it: Slurm holds it for ever (reliability C5).
            self._report(f"{live.stage}: job {live.job} is held ({job.reason}): cancelling it")
            slurm.cancel([live.job])
            return self._ended(live, Verdict("over", "BOOT_FAIL", job.reason, nodes=live.node))
        late = now - live.since > 60 * patience.pending_minutes
        if late or any(words in job.reason for words in HELD):
            self._tell_once(live, f"{live.stage}: job {live.job} waits in the queue: {job.reason}")
        return None

    def _tell_once(self, live: _Live, line: str) -> None:
        if line not in live.told:
            live.told.add(line)
            self._report(line)

    def _ended(self, live: _Live, verdict: Verdict, *, committed: bool = False) -> Ended:
        record = read_exit(exit_file(self._run, live.stage, live.attempt))
        if record is not None and record.requeued:
            record = None
        said = _tail(submitit_folder(self._run, live.stage.party), live.job)
        cause = None
        if not committed:
            cause = classify(verdict.state, record, said, begun=self._log_size(live) > 0)
            cause = Cause.HUNG if live.hung and cause != Cause.WARNED else cause
            # On a full disk a job cannot even say so.
            if cause in (Cause.CRASHED, Cause.NEVER_STARTED) and not can_write(self._run.root):
                cause = Cause.NO_SPACE
        node = (record.node if record else "") or verdict.nodes or live.node
        code = 0 if committed else (record.exit_code if record and record.exit_code else -1)
        told = f"job {live.job}: {verdict.state or 'not in Slurm any more'}{_complaint(said)}"
        detail = (record.detail if record else "") or told
        seen = time.monotonic() - live.began if live.began else 0.0
        seconds = record.ended - record.began if record else seen
        return Ended(live.stage, code, detail, seconds, cause=cause, node=_one(node), job=live.job)

    def _close(self, queued: Mapping[str, Job]) -> None:
        """Jobs whose stage has committed: what goes on running or waiting for long is cancelled."""
        for job_id, since in list(self._closing.items()):
            job = queued.get(job_id)
            if job is None:
                del self._closing[job_id]
            elif job.state == "PENDING" or time.monotonic() - since > 60:
                slurm.cancel([job_id])
                del self._closing[job_id]

    def _log_size(self, live: _Live) -> int:
        one = self._run.log(live.stage.party, live.stage, live.attempt)
        return sum(path.stat().st_size for path in one.parent.glob(f"{one.stem}*.log"))


def _one(node: str) -> str | None:
    """A single node's name; None for a list, of which one bad node cannot be told."""
    return node if node and not set(node) & set("[,") else None


def _tail(folder: Path, job: str) -> str:
    """The end of what a job itself said, all tasks."""
    texts = [
        path.read_text(encoding="utf-8", errors="replace")[-TAIL:] for path in folder.glob(f"{job}_*_log.*")
    ]
    return "\n".join(texts)


def _complaint(said: str) -> str:
    """The first line that reads like an error, of what a job itself said."""
    lines = [line.strip() for line in said.splitlines() if "error:" in line.lower()]
    return f": {lines[0]}" if lines else ""


def _resources(parameters: Mapping[str, Any]) -> dict[str, Any]:
    names = ("nodes", "gpus_per_node", "gres", "cpus_per_task", "mem", "time", "partition", "exclude")
    return {name: parameters[name] for name in names if parameters.get(name) is not None}
