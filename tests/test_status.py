"""`make status`: what a person and a machine are told of a run in every state that it can be in."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from jobs.__main__ import main
from jobs.log_files import last_progress
from jobs.snapshot import Snapshot, elapsed_seconds, look
from jobs.stage_view import StageView
from jobs.status import as_json
from jobs.status_text import render
from lada.driver import Driver
from lada.errors import StageError
from lada.lease import lease
from lada.ledger import Ledger
from lada.policy import Change
from lada.progress import StageReporter, file_log
from lada.rundir import RunDir, Stage
from tests.fake_runs import Behaviour, ScriptedLauncher, drive, good, make_run
from tests.queues import job, on_cluster, queue

pytestmark = pytest.mark.usefixtures("no_fsync")
PREPARE = Stage(0, "prepare", "client-1")


def text_of(shot: Snapshot, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(render(shot, width))
    shown = console.file
    assert isinstance(shown, io.StringIO)
    return shown.getvalue()


def cell(shot: Snapshot, stage: str) -> StageView:
    return next(view for view in shot.stages if str(view.stage) == stage)


def states(shot: Snapshot) -> list[str]:
    return [view.state for view in shot.stages]


def interrupted(run: RunDir, stage: Stage, attempt: str) -> int:
    raise KeyboardInterrupt


# -- runs of this machine


def test_a_run_that_never_began(tmp_path: Path) -> None:
    shot = look(make_run(tmp_path, "rounds=1"))
    assert (shot.state, shot.slurm, shot.driver.state) == ("paused", "unused", "none")
    assert set(states(shot)) == {"waiting"}
    assert "make resume" in shot.hint or "make submit" in shot.hint
    assert shot.left_seconds is None and shot.last_error is None
    assert ": paused, 1 round" in text_of(shot)


def test_a_finished_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=2")
    drive(run)
    shot = look(run)
    assert (shot.state, shot.rounds_done, shot.left_seconds, shot.hint) == ("done", 2, 0.0, "")
    assert set(states(shot)) == {"committed"}
    assert cell(shot, "client-1/r02-learn").accuracy == 30.0
    assert "done 30.0 %" in text_of(shot) and str(run.metrics_csv) in text_of(shot, 200)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    with pytest.raises(StageError):
        drive(run, {"client-1/r01-learn": [lambda *_: 3]})
    shot = look(run)
    assert shot.state == "failed"
    assert shot.last_error is not None and shot.last_error["event"] == "stopped"
    failed = cell(shot, "client-1/r01-learn")
    assert (failed.state, failed.cause, failed.exit_code) == ("failed", "user_error", 3)
    shown = text_of(shot)
    assert "configuration, data or model cannot be used" in shown and "failed for good" in shown
    assert "make resume" in shown


def test_a_run_that_was_killed_is_paused_and_its_stage_runs_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    with pytest.raises(KeyboardInterrupt):
        drive(run, {"client-1/r01-respond": [interrupted]})
    shot = look(run)
    assert shot.state == "paused" and "no driver is at work" in shot.hint
    cut = cell(shot, "client-1/r01-respond")
    assert (cut.state, cut.text) == ("waiting", "was cut off; runs again")
    assert "again" in text_of(shot)


class Looking(ScriptedLauncher):
    """Looks at the run from inside a stage, as another process would while it runs."""

    def __init__(self, run: RunDir, at: str, script: dict[str, list[Behaviour]] | None = None) -> None:
        super().__init__(run, script)
        self.at, self.shots = at, list[Snapshot]()

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, object]:
        if str(stage) == self.at:
            self.shots.append(look(self.run))
            tick = StageReporter(str(stage), file_log(self.run.log(stage.party, stage, attempt)))
            tick.phase("training", 4)(4, "loss 0.596")
            tick.phase("test after the round", 8)(8, "accuracy 37.5 %")
            self.shots.append(look(self.run))
        return super().start(stage, attempt, change)


def live(run: RunDir, at: str, script: dict[str, list[Behaviour]] | None = None) -> list[Snapshot]:
    launcher = Looking(run, at, script)
    with lease(run.lease):
        Driver(run, launcher, poll_seconds=0.0).drive()
    return launcher.shots


def test_a_live_driver_of_this_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    before, during = live(run, "client-1/r01-learn")
    assert before.state == during.state == "running"
    assert during.driver.pid == os.getpid() and during.driver.host == socket.gethostname()
    # Nothing written yet: it may wait for a core.
    assert cell(before, "client-1/r01-learn").state == "queued"
    running = cell(during, "client-1/r01-learn")
    assert running.state == "running" and running.progress is not None
    assert (running.progress.phase, running.progress.done, running.progress.total) == (
        "test after the round",
        8,
        8,
    )
    assert (running.progress.loss, running.progress.accuracy) == (0.596, 37.5)
    assert "test after the round [##########] 8/8, accuracy 37.5 %, loss 0.596" in text_of(during, 120)
    assert as_json(during)["stages"][-1]["loss"] == 0.596
    assert look(run).state == "done"


def test_attempts_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    shots = live(run, "client-1/r01-learn", {"server/r01-respond": [lambda *_: 1, good]})
    assert "done ×2" in text_of(shots[-1])
    assert cell(shots[-1], "server/r01-respond").attempts == 2


def test_the_time_left_is_known_once_every_step_was_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=3")
    first, _ = live(run, "server/r01-learn")
    assert first.left_seconds is None
    assert "not known" in text_of(first)
    for stage in (Stage(3, "respond", "server"), Stage(3, "learn", "server"), Stage(3, "learn", "client-1")):
        run.commit(stage).rename(tmp_path / f"{stage.party}-{stage.name}")
    left = look(run).left_seconds
    # The fake stages take a quarter of a second each, by their own word.
    assert left is not None and 0.25 <= left <= 0.75


def test_a_pause_of_the_driver_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    ledger = Ledger(run.ledger_jsonl)
    ledger.write("driver-began", host="h", pid=1, continued=False)
    ledger.write("paused", reason="less than 5 GB are free")
    with lease(run.lease):
        shot = look(run)
        assert shot.state == "paused" and "less than 5 GB are free" in shot.hint
        ledger.write("went-on")
        assert look(run).state == "running"
    assert look(run).state == "paused"


def test_a_lease_of_another_host_leaves_it_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    Ledger(run.ledger_jsonl).write("driver-began", host="elsewhere", pid=1, continued=False)
    run.lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x"}))
    shot = look(run)
    assert (shot.driver.state, shot.state) == ("unknown", "running")
    assert "elsewhere" in shot.driver.text


def test_a_dead_owner_s_lease_is_no_driver(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    run.lease.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "start": "x"}))
    shot = look(run)
    assert (shot.driver.state, shot.state) == ("none", "paused")


# -- runs of a cluster


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    return on_cluster(make_run(tmp_path, "rounds=1"), tmp_path)


def submitted(run: RunDir, stage: Stage, number: int, attempt: str = "01-a") -> None:
    ledger = Ledger(run.ledger_jsonl)
    ledger.write("started", stage=str(stage), attempt=attempt)
    ledger.write("submitted", stage=str(stage), attempt=attempt, job=str(number), resources={"nodes": 1})


def test_a_queued_driver_is_pending(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(monkeypatch, [job(run, 7, None, "PENDING", "Resources")])
    shot = look(run)
    assert (shot.state, shot.driver.state, shot.driver.job) == ("pending", "queued", "7")
    assert "job 7 is queued: waits for free" in text_of(shot)
    assert as_json(shot)["jobs"][0]["id"] == "7"


def test_running_and_queued_jobs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Stage(0, "prepare", "server")
    submitted(run, server, 8)
    submitted(run, PREPARE, 9)
    tick = StageReporter(str(server), file_log(run.root / "logs" / "server" / "r00-prepare.01-a-0.log"))
    tick.phase("test", 72)(72, "accuracy 80.6 %")
    waiting = job(run, 9, PREPARE, "PENDING", "QOSMaxGRESPerUser")
    queue(monkeypatch, [job(run, 7, None), job(run, 8, server, nodes="n3", elapsed="1:02:03"), waiting])
    shot = look(run)
    assert (shot.state, shot.slurm, shot.driver.job) == ("running", "answers", "7")
    running, queued = cell(shot, str(server)), cell(shot, str(PREPARE))
    assert (running.state, running.node, running.job, running.elapsed) == ("running", "n3", "8", "1:02:03")
    assert running.progress is not None and running.progress.accuracy == 80.6
    assert (queued.state, queued.reason, queued.stuck) == ("queued", "QOSMaxGRESPerUser", False)
    shown = text_of(shot, 120)
    assert "running (job 8, on n3, 1:02:03 of 1:00:00)" in shown
    assert "the QOS's limit of GPUs per user is reached" in shown


def test_a_job_whose_submission_was_never_heard_of_is_found_by_name(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(run.ledger_jsonl).write("started", stage=str(PREPARE), attempt="01-a")
    queue(monkeypatch, [job(run, 7, None), job(run, 9, PREPARE)])
    assert cell(look(run), str(PREPARE)).job == "9"


def test_what_will_not_start_by_itself_is_the_hint(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, PREPARE, 9)
    queue(monkeypatch, [job(run, 7, None), job(run, 9, PREPARE, "PENDING", "BadConstraints")])
    shot = look(run)
    assert cell(shot, str(PREPARE)).stuck
    assert "client-1/r00-prepare will not start by itself" in shot.hint
    assert "configs/clusters" in text_of(shot)


def test_jobs_of_another_folder_with_the_same_names_are_not_ours(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunDir(tmp_path / "elsewhere" / "run")
    queue(monkeypatch, [job(other, 7, None), job(other, 9, PREPARE)])
    shot = look(run)
    assert shot.jobs == () and shot.driver.state == "none"


def test_a_job_that_left_the_queue_is_not_failed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, PREPARE, 9)
    queue(monkeypatch, [job(run, 7, None)])
    view = cell(look(run), str(PREPARE))
    assert view.state == "waiting" and "the driver has not looked yet" in view.text
    queue(monkeypatch, [])
    assert "runs again" in cell(look(run), str(PREPARE)).text


def test_no_answer_of_slurm_is_unknown(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(run.ledger_jsonl).write("driver-began", host="h", pid=1, job="7", continued=False)
    submitted(run, PREPARE, 9)
    queue(monkeypatch, None)
    shot = look(run)
    assert (shot.state, shot.slurm, shot.driver.state) == ("running", "silent", "unknown")
    assert cell(shot, str(PREPARE)).state == "unknown"
    assert "Slurm does not answer" in text_of(shot)
    assert look(run).jobs == ()


def test_no_answer_before_the_driver_ever_began_is_pending(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(monkeypatch, None)
    assert look(run).state == "pending"


def test_a_driver_on_another_host_lives_as_long_as_its_job(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round job bears no run's name: only the lease says that it drives this run."""
    run.lease.write_text(json.dumps({"host": "n9", "pid": 1, "start": "x", "job": "70"}))
    round_job = job(RunDir(Path("/elsewhere")), 70, None)
    queue(monkeypatch, [round_job])
    assert (look(run).driver.state, look(run).state) == ("running", "running")
    queue(monkeypatch, [])
    assert (look(run).driver.state, look(run).state) == ("none", "paused")


def test_stages_that_go_on_without_a_driver_are_told(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, PREPARE, 9)
    queue(monkeypatch, [job(run, 9, PREPARE)])
    shot = look(run)
    assert shot.state == "paused" and "1 stage jobs still go on" in shot.hint


def test_a_cancelled_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run, PREPARE, 9)
    Ledger(run.ledger_jsonl).write("cancelled", jobs=["7", "9"])
    queue(monkeypatch, [])
    shot = look(run)
    assert (shot.state, cell(shot, str(PREPARE)).text) == ("paused", "cancelled")


def test_a_driver_that_ends_is_not_at_work(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(monkeypatch, [job(run, 7, None, "COMPLETING")])
    assert look(run).driver.state == "none"


# -- the command


def test_json_is_one_object_with_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "rounds=1")
    drive(run)
    assert main(["status", "--run", str(run.root), "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert found["state"] == "done" and found["run_dir"] == str(run.root)
    assert {"run_id", "rounds", "stages", "driver", "jobs", "last_error", "hint"} <= set(found)
    keys = {"stage", "state", "attempts", "reason", "phase", "done", "total", "loss", "accuracy", "cause"}
    assert keys <= set(found["stages"][0])
    assert found["rounds"] == {"done": 1, "total": 1}


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "rounds=1")
    with pytest.raises(StageError):
        drive(run, {"client-1/r00-prepare": [lambda *_: 3]})
    assert main(["status", "--run", str(run.root)]) == 0
    assert main(["status", "--run", "none", "--runs", str(tmp_path)]) == 2
    assert "no run 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("parties", [2, 6, 12])
def test_it_fits_80_columns(tmp_path: Path, parties: int) -> None:
    run = make_run(tmp_path, "rounds=1")
    plan = json.loads(run.plan_json.read_text())
    plan["parties"] = ["server", *(f"client-{number}" for number in range(1, parties))]
    plan["rounds"] = 20
    run.plan_json.write_text(json.dumps(plan))
    Ledger(run.ledger_jsonl).write("failed", stage="server/r00-prepare", detail="x" * 300, cause="crashed")
    shown = text_of(look(run))
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert all(f"client-{number}" in shown for number in range(1, parties))
    assert "r02-r20" in shown and len(shown.splitlines()) < 24 * (1 + parties // 4)


def test_a_log_that_a_party_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("2026-11-21 00:36:42 a/r01-learn: \x1b[2Jtrain 1/2 loss nan elapsed 1.0 s left 1.0 s\n")
    found = last_progress(log)
    assert found is not None and "\x1b" not in found.phase and found.loss is None


def test_slurm_s_times() -> None:
    assert elapsed_seconds("5:03") == 303
    assert elapsed_seconds("1:00:00") == 3600
    assert elapsed_seconds("2-01:00:01") == 2 * 86400 + 3601
    assert elapsed_seconds("INVALID") == 0
