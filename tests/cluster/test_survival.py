"""Faults in the middle of a run, by Slurm's own hand or with a signal: survived, with the same results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.slurm import job_name
from lada.faults import LAUNCH_POINTS
from lada.rundir import Stage
from tests.cluster.harness import Run, Suite

PREPARE, RESPOND, LEARN = (
    Stage(0, "prepare", "client-1"),
    Stage(1, "respond", "client-1"),
    Stage(1, "learn", "client-1"),
)
SERVER_PREPARE, SERVER_LEARN = Stage(0, "prepare", "server"), Stage(1, "learn", "server")
DRIVER_POINTS = (
    *LAUNCH_POINTS,
    "ledger.half-line",
    "ledger.line-written",
    "metrics.before-replace",
    "metrics.replaced",
    "publish.copied",
    "publish.renamed",
)


@pytest.mark.ci
def test_parties_killed_at_every_point_of_their_commit(suite: Suite, expected: bytes) -> None:
    crashes = {
        PREPARE: "commit.files-written",
        SERVER_PREPARE: "commit.manifest-written",
        RESPOND: "commit.renamed",
        Stage(1, "respond", "server"): "publish.copied",
        LEARN: "publish.renamed",
    }
    asked = ",".join(f"{stage}={point}" for stage, point in crashes.items())
    run = suite.submit("killed-parties", LADA_CRASH_STAGE=asked).wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    # Killed before its commit a stage runs again; killed after it, the commit counts.
    assert run.failures(PREPARE) == run.failures(SERVER_PREPARE) == ["crashed"]
    assert run.failures(RESPOND) == run.failures(LEARN) == []

    def leftovers() -> list[Path]:
        return [*(run.folder.root / "parties").glob("*/.staging/*")]

    run.wait_for(lambda: not leftovers(), "empty staging folders", patience=60)


@pytest.mark.ci
def test_a_party_killed_from_outside_in_the_middle_of_its_work(suite: Suite, expected: bytes) -> None:
    run = suite.submit("kill-9")
    os.kill(run.wait_for_process(PREPARE), signal.SIGKILL)
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.failures(PREPARE) == ["crashed"]


@pytest.mark.ci
def test_the_driver_killed_at_each_of_its_points(suite: Suite, expected: bytes) -> None:
    """Started again after each, it adopts what lives and submits nothing twice; one is a lost reply."""
    # Stages publish for themselves; two that die before they do leave it to the driver.
    crash = f"{LEARN}=commit.renamed,{SERVER_LEARN}=commit.renamed"
    run = suite.submit("killed-driver", LADA_CRASH_DRIVER=DRIVER_POINTS[0], LADA_CRASH_STAGE=crash)
    for point in (*DRIVER_POINTS[1:], None):
        run.wait_for(lambda: job_name(run.folder, None) not in run.queue(), "the driver's death")
        assert not run.events("driver-ended"), f"it died before {point}"
        environment = {"LADA_CRASH_STAGE": crash, **({"LADA_CRASH_DRIVER": point} if point else {})}
        done = run.resume(**environment)
        assert done.returncode == 0, done.stderr
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    for stage in (PREPARE, RESPOND, LEARN):
        assert run.folder.is_committed(stage)
    assert set(run.failures()) <= {"never_started"}, "what was lost between sbatch and the ledger, no more"


@pytest.mark.ci
def test_a_cancelled_party_runs_again(suite: Suite, expected: bytes) -> None:
    run = suite.submit("scancel")
    suite.command("scancel", run.job(PREPARE))
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.failures(PREPARE) == ["cancelled"]


@pytest.mark.ci
def test_a_requeued_party_and_a_requeued_driver_go_on(suite: Suite, expected: bytes) -> None:
    run = suite.submit("requeue")
    party = run.job(PREPARE)
    run.wait_for_process(PREPARE)
    suite.command("scontrol", "requeue", party)
    driver = run.job(None)
    suite.command("scontrol", "requeue", driver)
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.failures() == []
    assert [event["continued"] for event in run.events("driver-began")] == [False, True]
    assert len([event for event in run.events("submitted") if event["stage"] == str(PREPARE)]) == 1
    assert any(event["stage"] == str(PREPARE) for event in run.events("adopted"))


def test_a_warned_party_saves_a_resume_point_and_is_requeued(suite: Suite, expected: bytes) -> None:
    """USR2 as Slurm sends it ahead of a time limit, twice, to every process of the step."""
    run = suite.submit("warned", LADA_RESUME_MIN_SECONDS="0")
    job = run.job(PREPARE)
    run.wait_for_process(PREPARE)
    for _ in range(2):
        suite.command("scancel", "--signal=USR2", job, check=False)
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    logs = "\n".join(
        path.read_text() for path in (run.folder.root / "logs" / "client-1").glob("r00-prepare.*")
    )
    assert "Paused: " in logs
    record = json.loads(next(exit_files(run, PREPARE)).read_text())
    assert record["restarts"] == 1, "the job was requeued by its own host function"


def exit_files(run: Run, stage: Stage) -> object:
    return (run.folder.root / "logs" / "submitit" / stage.party).glob(f"{stage.name}.*.exit.json")


def test_a_time_limit_with_its_warning(suite: Suite, tmp_path: Path) -> None:
    """A stage that needs longer than its limit: warned, saved, requeued, and in the end the same."""
    options = ("--scenario", "one-client", "--size", "tiny", "--set", "rounds=1 data.num_test=1500")
    lines = [{"up_to": 80, "gpus": 1, "ranks": 1, "cpus": 1, "memory_gb": 3, "minutes": 1}]
    cluster = suite.cluster(resources=lines, patience={"warning_seconds": 30})
    run = suite.submit("time-limit", *options, cluster=cluster, LADA_RESUME_MIN_SECONDS="0").wait(
        patience=1500
    )
    assert run.folder.metrics_csv.read_bytes() == suite.in_process(tmp_path, *options)
    restarts = [json.loads(path.read_text())["restarts"] for path in exit_files(run, PREPARE)]  # type: ignore[attr-defined]
    assert max(restarts) >= 1


def test_a_party_out_of_memory_gets_more(suite: Suite, expected: bytes) -> None:
    lines = [{"up_to": 80, "gpus": 1, "ranks": 1, "cpus": 1, "memory_gb": 0.5, "minutes": 30}]
    run = suite.submit("memory", cluster=suite.cluster(resources=lines)).wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert set(run.failures()) == {"out_of_memory"}
    failed = {event["stage"] for event in run.events("failed")}
    for stage in failed:
        asked = [event["resources"]["mem"] for event in run.events("submitted") if event["stage"] == stage]
        assert asked[:2] == ["512M", "768M"]


def test_a_stopped_party_is_noticed_and_replaced(suite: Suite, expected: bytes) -> None:
    run = suite.submit("hang", cluster=suite.cluster(patience={"hang_minutes": 1.5}))
    os.kill(run.wait_for_process(PREPARE), signal.SIGSTOP)
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.failures(PREPARE)[:1] == ["hung"]
    changed = [event.get("change", {}) for event in run.events("started") if event["stage"] == str(PREPARE)]
    assert changed[1].get("exclude"), "its node is avoided"


def test_a_full_disk_pauses_the_run_until_there_is_space(suite: Suite, expected: bytes) -> None:
    folder = suite.runs("full")
    suite.command("mkdir", "-p", str(folder))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=777", "tmpfs", str(folder)], check=True)
    try:
        run = suite.submit("full", cluster=suite.cluster(patience={"free_gb": 0.002}))
        run.wait_for(lambda: run.events("submitted"), "the first stages")
        ballast = folder / "ballast"
        suite.command("sh", "-c", f"head -c 300M /dev/zero > {ballast}", check=False)
        run.wait_for(lambda: run.status()["state"] == "paused", "a pause")
        # The driver cannot note it on a full disk; it has noticed once its stages are over and none follows.
        run.wait_for(lambda: len(run.queue()) == 1, "the driver alone")
        time.sleep(5)
        assert len(run.queue()) == 1, "nothing is started on a full disk"
        ballast.unlink()
        run.wait()
        assert run.folder.metrics_csv.read_bytes() == expected
        # On a full disk Slurm itself cannot open a stage's log: such an attempt never starts.
        assert set(run.failures()) <= {"no_space", "never_started"}
        assert "going on, paused for " in run.driver_log(), "said when there is room to say it"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
