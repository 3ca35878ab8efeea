"""`make watch`: when it ends, with which exit code, and what it says where there is no terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.watch import looks
from lada.errors import StageError
from lada.lease import lease
from lada.ledger import Ledger
from lada.rundir import RunDir, Stage
from tests.fake_runs import commit_stage, drive, make_run
from tests.queues import job, on_cluster, queue

pytestmark = pytest.mark.usefixtures("no_fsync")
ROOT = Path(__file__).parents[1]
PREPARE = Stage(0, "prepare", "client-1")


def watch(run: RunDir) -> int:
    return main(["watch", "--run", str(run.root), "--every", "0.01"])


def test_exit_codes_of_runs_that_are_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, failed, left = (make_run(tmp_path / name, "rounds=1") for name in ("done", "failed", "left"))
    drive(done)
    with pytest.raises(StageError):
        drive(failed, {"client-1/r00-prepare": [lambda *_: 3]})
    assert [watch(run) for run in (done, failed, left)] == [0, 7, 1]
    assert main(["watch", "--run", "none", "--runs", str(tmp_path)]) == 2
    assert "no run 'none'" in capsys.readouterr().err


def test_without_a_terminal_it_says_what_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "rounds=1")
    server = Stage(0, "prepare", "server")
    commit_stage(run, server)
    monkeypatch.setattr("jobs.watch.time.sleep", lambda seconds: steps.pop(0)())

    def begin() -> None:
        Ledger(run.ledger_jsonl).write("started", stage=str(PREPARE), attempt="01-a")

    def write() -> None:
        run.log("client-1", PREPARE, "01-a").parent.mkdir(parents=True)
        run.log("client-1", PREPARE, "01-a").write_text("hello\n")

    def leave() -> None:
        run.lease.unlink()

    steps = [begin, write, lambda: None, leave]
    with lease(run.lease):
        assert watch(run) == 1
    said = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    name = "client-1/r00-prepare"
    assert said == [
        f"{look_id(run)}: running",
        f"driver: process {os.getpid()} on {os.uname().nodename}",
        "stages: 1 of 6 are committed",
        f"{name}: queued: waits for a free core",
        f"{name}: running",
        f"{look_id(run)}: paused",
        "driver: none is at work",
        f"{name}: waiting: was cut off; runs again",
        "hint: no driver is at work: `make resume` goes on where it was",
    ]


def test_time_that_passes_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_cluster(make_run(tmp_path, "rounds=1"), tmp_path)
    times = ["0:05", "0:10", "0:15"]

    def later(seconds: float) -> None:
        jobs = [job(run, 7, None, elapsed=times[0]), job(run, 9, PREPARE, elapsed=times.pop(0))]
        queue(monkeypatch, jobs if times else [])

    monkeypatch.setattr("jobs.watch.time.sleep", later)
    queue(monkeypatch, [job(run, 7, None), job(run, 9, PREPARE)])
    assert watch(run) == 1
    assert capsys.readouterr().out.count("client-1/r00-prepare: running (job 9, on n1)") == 1


def look_id(run: RunDir) -> str:
    from lada.plan import read_plan

    return read_plan(run).run_id


def test_a_run_that_is_requeued_or_out_of_sight_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_cluster(make_run(tmp_path, "rounds=1"), tmp_path)
    Ledger(run.ledger_jsonl).write("driver-began", host="n1", pid=1, job="7", continued=False)
    queues = [[job(run, 7, None, "COMPLETING")], None, [job(run, 7, None, "PENDING", "BeginTime")], []]
    queue(monkeypatch, queues[0])
    seen = []
    for number, shot in enumerate(looks(run, lambda shot: None), start=1):
        seen.append(shot.state)
        queue(monkeypatch, queues[number] if number < len(queues) else [])
    assert seen == ["paused", "running", "pending", "paused"]


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_it_ends_with_the_whole_status(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path, "rounds=1")
    drive(run)
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "jobs", "watch", "--run", str(run.root)]
    child = subprocess.Popen(command, stdout=follower, stderr=follower, cwd=ROOT, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # the terminal is closed when the child ends
            break
    os.close(leader)
    assert child.wait(60) == 0
    assert "all of 1 round" in shown.decode() and "\x1b[" in shown.decode(), "in colour"
