"""What Slurm's commands say, from their real output; the real commands are tried in tests/cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import slurm
from jobs.slurm import Job, SlurmError, Verdict, attempt_of, comment, job_name, probe, run_jobs, run_mark
from lada.rundir import RunDir, Stage

SEPARATOR = slurm.SEPARATOR
STAGE = Stage(1, "learn", "client-1")
SHOWN = (
    "JobId=6 JobName=j.sh UserId=lada(1001) JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
    "Restarts=0 ExitCode={code} RunTime=00:00:00 NodeList={nodes} NumNodes=1-1 Command=/home/j.sh 30"
)


class Answers:
    """Stands in for the programs: what each says, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **said: tuple[int, str, str]) -> None:
        self.said, self.asked = said, []  # type: ignore[var-annotated]
        monkeypatch.setattr(slurm.shutil, "which", lambda name: name if name in said else None)
        monkeypatch.setattr(slurm.subprocess, "run", self.run)

    def run(self, arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(arguments))
        return subprocess.CompletedProcess(arguments, *self.said[arguments[0]])


def queue(*jobs: Job) -> str:
    rows = [(j.id, j.name, j.state, j.reason, j.comment, j.nodes, j.elapsed, j.limit) for j in jobs]
    return "".join(SEPARATOR.join(row) + "\n" for row in rows)


def job(number: str, name: str = "x", state: str = "RUNNING", words: str = "") -> Job:
    return Job(number, name, state, "None", words, "n1", "0:10", "1:00:00")


NO_JOB = (1, "", "slurm_load_jobs error: Invalid job id specified\n")
AWAY = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
NO_ACCOUNTS = (1, "", "Slurm accounting storage is disabled\n")


@pytest.mark.parametrize(
    ("squeue", "scontrol", "sacct", "verdict"),
    [
        ((0, queue(job("6")), ""), NO_JOB, NO_ACCOUNTS, Verdict("live", "RUNNING", "None", nodes="n1")),
        (
            (0, queue(job("6", state="TIMEOUT")), ""),
            NO_JOB,
            NO_ACCOUNTS,
            Verdict("over", "TIMEOUT", "None", nodes="n1"),
        ),
        (
            (0, "", ""),
            (0, SHOWN.format(state="FAILED", reason="NonZeroExitCode", code="0:9", nodes="n2"), ""),
            NO_ACCOUNTS,
            Verdict("over", "FAILED", "NonZeroExitCode", "0:9", "n2"),
        ),
        # Held for ever is not over.
        (
            (0, "", ""),
            (0, SHOWN.format(state="PENDING", reason="JobHeldUser", code="0:0", nodes="(null)"), ""),
            NO_ACCOUNTS,
            Verdict("live", "PENDING", "JobHeldUser", "0:0", ""),
        ),
        (
            (0, "", ""),
            NO_JOB,
            (0, "CANCELLED by 1001|None|0:15|n1\n", ""),
            Verdict("over", "CANCELLED", "None", "0:15", "n1"),
        ),
        # A requeued job has several records; the newest counts.
        (
            (0, "", ""),
            NO_JOB,
            (0, "REQUEUED|None|0:0|n1\nCOMPLETED|None|0:0|n2\n", ""),
            Verdict("over", "COMPLETED", "None", "0:0", "n2"),
        ),
        # Accounts that lag behind call a job running that the controller forgot: nobody knows.
        ((0, "", ""), NO_JOB, (0, "RUNNING|None|0:0|n1\n", ""), Verdict("unknown", "RUNNING")),
        ((0, "", ""), NO_JOB, NO_ACCOUNTS, Verdict("gone")),
        ((0, "", ""), NO_JOB, (0, "", ""), Verdict("gone")),
        # Missing while the controller is away is not missing.
        (AWAY, AWAY, NO_ACCOUNTS, Verdict("unknown")),
        (AWAY, AWAY, (0, "", ""), Verdict("unknown")),
        (AWAY, AWAY, (0, "COMPLETED|None|0:0|n2\n", ""), Verdict("over", "COMPLETED", "None", "0:0", "n2")),
        (AWAY, NO_JOB, NO_ACCOUNTS, Verdict("unknown")),
    ],
)
def test_probe(
    squeue: tuple[int, str, str],
    scontrol: tuple[int, str, str],
    sacct: tuple[int, str, str],
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Answers(monkeypatch, squeue=squeue, scontrol=scontrol, sacct=sacct)
    assert probe(["6"]) == {"6": verdict}


def test_a_silent_controller_is_no_empty_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Answers(monkeypatch, squeue=AWAY)
    assert slurm.my_jobs() is None
    assert run_jobs(RunDir(tmp_path)) is None


def test_a_run_knows_its_own_jobs_of_two_folders_with_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, other = RunDir(tmp_path / "a" / "run"), RunDir(tmp_path / "b" / "run")
    assert job_name(mine, STAGE) != job_name(other, STAGE)
    assert job_name(mine, STAGE).startswith("run.r01-learn.client-1.")
    jobs = (
        job("1", job_name(mine, STAGE), words=comment(mine, "02-ab")),
        job("2", words=comment(other, "01-cd")),
        job("3"),
    )
    Answers(monkeypatch, squeue=(0, queue(*jobs), ""))
    (found,) = run_jobs(mine) or []
    assert (found.id, attempt_of(found)) == ("1", "02-ab")
    assert found.comment.startswith(run_mark(mine))


def test_a_host_without_slurm_is_told_so() -> None:
    with pytest.raises(SlurmError, match="no program 'squeue-that-is-not-there'"):
        slurm.command(["squeue-that-is-not-there"])


def test_what_is_submitted_inherits_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/x",
        "SBATCH_PARTITION": "y",
        "LADA_CRASH_AT": "p",
        "OTHER": "z",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    with slurm.outside_job():
        seen = {name: os.environ.get(name) for name in planted}
    assert seen == {
        "SLURM_JOB_ID": None,
        "SLURM_CONF": "/x",
        "SBATCH_PARTITION": None,
        "LADA_CRASH_AT": None,
        "OTHER": "z",
    }
    assert all(os.environ[name] == value for name, value in planted.items())


def test_a_refused_submission_says_what_sbatch_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, sbatch=(1, "", "sbatch: error: invalid partition specified: gpu\n"))
    with pytest.raises(SlurmError, match="invalid partition specified: gpu"):
        slurm.submit(["x"])
    Answers(monkeypatch, sbatch=(0, "81;devcluster\n", ""))
    assert slurm.submit(["x"]) == "81"
