"""`make gc`: what can go, what stays, and when nothing may be touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.gc import find_waste
from lada.driver import Driver
from lada.exchange import withdraw
from lada.lease import lease
from lada.ledger import Ledger
from lada.plan import read_plan
from lada.rundir import RunDir, Stage
from tests.fake_runs import ScriptedLauncher, drive, make_run
from tests.queues import job, on_cluster, queue

pytestmark = pytest.mark.usefixtures("no_fsync")
LEARN = Stage(1, "learn", "client-1")


def fill(path: Path, text: str = "x" * 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    """A run of which the client's last stage is missing, with litter of every kind."""
    run = make_run(tmp_path, "rounds=1")
    drive(run)
    shutil.rmtree(run.commit(LEARN))
    withdraw(run, LEARN)
    ledger = Ledger(run.ledger_jsonl)
    ledger.write("started", stage="client-1/r01-respond", attempt="02-b")
    ledger.write("submitted", stage="client-1/r01-respond", attempt="02-b", job="41")
    ledger.write("started", stage=str(LEARN), attempt="02-b")
    ledger.write("submitted", stage=str(LEARN), attempt="02-b", job="42")
    fill(run.staging(LEARN, "02-b") / "metrics.json")
    fill(run.resume(LEARN) / "00001.safetensors")
    fill(run.resume(Stage(1, "respond", "client-1")) / "00001.safetensors")
    fill(run.rejected("client-1") / "r01-learn.0" / "reason.txt")
    submitit = run.root / "logs" / "submitit" / "client-1"
    for name in ("41_submitted.pkl", "41_0_log.out", "42_submitted.pkl", "42_0_log.out"):
        fill(submitit / name)
    fill(submitit / "r01-learn.02-b.exit.json")
    fill(run.log("client-1", LEARN, "02-b"))
    fill(run.root / ".metrics.csv.17.tmp")
    fill(run.root.with_name("run.old-1") / "run.yaml")
    fill(run.root.with_name("run.older") / "run.yaml")
    return run


def gc(run: RunDir, *arguments: str) -> int:
    return main(["gc", "--run", str(run.root), *arguments])


def kinds(run: RunDir) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in find_waste(run, read_plan(run)):
        found.setdefault(one.kind, []).append(one.path.name)
        assert one.bytes == 1000
    return found


def test_what_can_go(run: RunDir) -> None:
    assert kinds(run) == {
        "staging": ["r01-learn.02-b"],
        # A resume point of a stage that is still to do stays, and so does what its job said.
        "resume": ["r01-respond"],
        "rejected": ["r01-learn.0"],
        "logs": ["41_0_log.out", "41_submitted.pkl", "42_submitted.pkl"],
        "temporary": [".metrics.csv.17.tmp"],
        "old": ["run.old-1"],
    }


def test_nothing_goes_before_it_is_asked_for(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = kinds(run)
    assert gc(run) == 0
    assert "8.0 kB can go" in capsys.readouterr().out
    assert kinds(run) == before


def test_yes_removes_it_and_the_run_goes_on(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(run, "--yes", "--only", "staging rejected") == 0
    assert set(kinds(run)) == {"resume", "logs", "temporary", "old"}
    assert gc(run, "--yes") == 0
    assert "removed" in capsys.readouterr().out and kinds(run) == {}
    assert run.resume(LEARN).is_dir() and run.log("client-1", LEARN, "02-b").is_file()
    assert (run.root / "logs" / "submitit" / "client-1" / "r01-learn.02-b.exit.json").is_file()
    assert run.root.with_name("run.older").is_dir()
    launcher = ScriptedLauncher(run)
    Driver(run, launcher, poll_seconds=0.0).drive()
    assert launcher.started == [str(LEARN)], "every commit was left whole"
    assert gc(run) == 0


def test_links_that_a_party_planted_are_not_followed(run: RunDir, tmp_path: Path) -> None:
    precious = fill(tmp_path / "precious" / "r01-respond" / "file").parent.parent
    for name in (".staging", ".resume", ".rejected"):
        shutil.rmtree(run.party("client-1") / name)
        (run.party("client-1") / name).symlink_to(precious)
    inner = run.party("server") / ".staging"
    inner.mkdir(exist_ok=True)
    (inner / "r01-learn.01-a").symlink_to(precious)
    assert "rejected" not in kinds_of(run)
    assert gc(run, "--yes") == 0
    assert (precious / "r01-respond" / "file").is_file()
    assert not (inner / "r01-learn.01-a").is_symlink()


def kinds_of(run: RunDir) -> set[str]:
    return {one.kind for one in find_waste(run, read_plan(run))}


def test_nothing_goes_while_a_driver_is_at_work(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = kinds(run)
    with lease(run.lease):
        assert gc(run) == 0
        assert "Not now" in capsys.readouterr().out
        assert gc(run, "--yes") == 9
    assert "nothing was removed: driver" in capsys.readouterr().err
    assert kinds(run) == before


def test_nothing_goes_while_jobs_may_be_at_work(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cluster(run, tmp_path)
    before = kinds(run)
    for jobs, said in (
        ([job(run, 42, LEARN)], "job 42"),
        ([job(run, 42, LEARN, "COMPLETING")], "job 42"),
        ([job(run, 7, None, "PENDING", "Priority")], "job 7 is queued"),
        (None, "Slurm does not answer"),
    ):
        queue(monkeypatch, jobs)
        assert gc(run, "--yes") == 9
        assert said in capsys.readouterr().err
    assert kinds(run) == before
    queue(monkeypatch, [])
    assert gc(run, "--yes") == 0


def test_json_and_unknown_kinds(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] is False and found["busy"] is None
    assert found["kinds"]["resume"]["bytes"] == 1000
    assert gc(run, "--only", "state") == 2
    assert "legal: staging, resume" in capsys.readouterr().err
