"""The submitit-local launcher: one subprocess per stage, the same numbers, failures reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from jobs.launch import Local
from jobs.stage_job import read_exit, run_command
from lada.driver import Driver
from lada.errors import StageError
from lada.policy import Change
from lada.rundir import RunDir, Stage
from tests.federation import make as make_run
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.usefixtures("smallest_lab")


def make(runs: Path, *settings: str) -> RunDir:
    """A run of the smallest models."""
    return make_run(runs, *SETTINGS, *settings, small=False)


@pytest.mark.slow
def test_a_stage_that_cannot_succeed_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    run = make(tmp_path, "rounds=1")
    run.data("client-1", "train").write_text("{not json\n")
    launcher = Local(run)
    with pytest.raises(StageError, match=r"client-1/r00-prepare failed for good: .*train.jsonl, line 1"):
        Driver(run, launcher).drive()
    launcher.stop()


def test_exit_file_holds_code_and_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('first'); print('last words'); sys.exit(5)"]
    assert run_command(command, str(tmp_path / "x.log"), str(tmp_path / "exit.json")) == 5
    record = read_exit(tmp_path / "exit.json")
    assert record is not None
    assert (record.exit_code, record.detail) == (5, "last words")
    assert record.began <= record.ended
    assert read_exit(tmp_path / "none.json") is None


def test_a_job_that_is_killed_counts_as_ended_without_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, "rounds=1")
    pid_file = tmp_path / "pid"
    write = "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    code = f"import os, pathlib, sys, time\n{write}\ntime.sleep(600)"
    sleeper = [sys.executable, "-c", code, str(pid_file)]
    monkeypatch.setattr("jobs.launch.step_command", lambda *_: sleeper)
    launcher = Local(run, width=1)
    launcher.start(Stage(0, "prepare", "server"), "01-x", Change())
    deadline = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    while not (ended := launcher.poll()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ended[0].exit_code != 0
