"""Slurm itself falls ill: a node's daemon, the controller, no accounts. Each alone, for all jobs feel it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lada.rundir import Stage
from tests.cluster.conftest import open_suite
from tests.cluster.harness import ROOT, Suite, wait_for

PREPARE = Stage(0, "prepare", "client-1")
DEVCLUSTER = ROOT / "slurm" / "devcluster"


def daemon(name: str, action: str, suite: Suite) -> None:
    environment = {**os.environ, "DEVCLUSTER": suite.environment["DEVCLUSTER"]}
    subprocess.run([DEVCLUSTER / "daemon.sh", name, action], env=environment, check=True, capture_output=True)


def test_a_dead_slurmd_and_its_split_brain(suite: Suite, expected: bytes) -> None:
    """The node is lost for Slurm while its stage goes on: the job runs twice, the first commit wins."""
    run = suite.submit("dead-slurmd")
    job = run.job(PREPARE)
    first = run.wait_for_process(PREPARE)
    os.kill(first, signal.SIGSTOP)  # or it would be done before Slurm misses its node
    node = suite.command("squeue", "--noheader", f"--jobs={job}", "--format=%N").stdout.strip()
    daemon(node, "kill", suite)
    try:
        run.wait_for(lambda: len(run.processes(PREPARE)) == 2, "a second copy beside the first", patience=300)
        os.kill(first, signal.SIGCONT)
        run.wait()
    finally:
        daemon(node, "start", suite)
    assert run.folder.metrics_csv.read_bytes() == expected
    assert set(run.failures()) <= {"node_lost", "cancelled", "crashed", "never_started"}


def test_a_dead_controller_for_half_a_minute(suite: Suite, expected: bytes) -> None:
    run = suite.submit("dead-controller")
    run.wait_for_process(PREPARE)
    daemon("slurmctld", "kill", suite)
    time.sleep(30)  # the fault itself, not a wait for something
    daemon("slurmctld", "start", suite)
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected


@pytest.fixture()
def no_accounts(suite: Suite) -> Iterator[Suite]:
    """A second cluster beside the first, without slurmdbd."""
    first = Path(suite.environment["DEVCLUSTER"])
    folder = first.with_name(first.name + "-plain")
    environment = {
        **os.environ,
        "DEVCLUSTER": str(folder),
        "ACCOUNTING": "none",
        "DEVPORT": "28800",
        "YES": "1",
    }
    folder.mkdir(exist_ok=True)
    for name in ("base.sif", "lada-cpu.sif", "lada-cpu.sif.json"):
        link = folder / name
        if not link.exists():
            link.symlink_to(first / name)
    subprocess.run([DEVCLUSTER / "up.sh"], env=environment, check=True, capture_output=True)
    try:
        yield open_suite(folder)
    finally:
        subprocess.run([DEVCLUSTER / "down.sh"], env=environment, check=True, capture_output=True)


def test_without_slurmdbd(no_accounts: Suite, expected: bytes) -> None:
    """No sacct: a killed and a cancelled party are noticed all the same, and cost comes from the ledger."""
    assert no_accounts.command("sacct", check=False).returncode != 0
    run = no_accounts.submit("plain")
    no_accounts.command("scancel", run.job(PREPARE))
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.failures(PREPARE) == ["cancelled"]
    cost = no_accounts.jobs("cost", "--run", str(run.folder.root))
    assert "ledger" in cost.stdout
    wait_for(lambda: not run.queue(), "an empty queue")
