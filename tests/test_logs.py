"""`make logs`: which logs are shown, how each attempt ended, following what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.log_files import attempt_logs, newest_log, tail
from jobs.logs import follow
from lada.ledger import Ledger
from lada.rundir import RunDir, Stage
from tests.fake_runs import drive, good, make_run

pytestmark = pytest.mark.usefixtures("no_fsync")
LEARN = Stage(1, "learn", "client-1")


def written(code: int):
    def behaviour(run: RunDir, stage: Stage, attempt: str) -> int:
        log = run.log(stage.party, stage, attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{stage} attempt {attempt}\nlast words {code}\x1b[2J\n")
        return code or good(run, stage, attempt)

    return behaviour


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path, "rounds=1")
    drive(run, {"client-1/r01-respond": [written(0)], "client-1/r01-learn": [written(1), written(0)]})
    return run


def logs(run: RunDir, *arguments: str) -> int:
    return main(["logs", "--run", str(run.root), *arguments])


def test_the_newest_round_with_every_attempt_s_end(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs(run, "--party", "client-1") == 0
    shown = capsys.readouterr().out
    assert "== client-1/r01-respond attempt 01-" in shown
    assert ": failed: ended with an error, exit code 1" in shown
    assert shown.count("last words 0") == 2 and "last words 1" not in shown, "the newest attempt of each step"
    assert "\x1b" not in shown


def test_round_and_step_narrow_it_down(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs(run, "--party", "client-1", "--round", "1", "--step", "learn") == 0
    assert "respond" not in capsys.readouterr().out
    assert logs(run, "--party", "client-1", "--round", "0") == 0
    assert "nothing written yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PARTY=<one of server, client-1, driver>"),
        (["--party", "client-7"], "not 'client-7'"),
        (["--party", "client-1", "--round", "5"], "begun are: r00-prepare, r01-respond, r01-learn"),
        (["--party", "client-1", "--step", "teach"], "begun are: nothing"),
        (["--party", "driver"], "no driver has written a log"),
    ],
)
def test_what_is_not_there_is_said(
    run: RunDir, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert logs(run, *arguments) == 2
    assert said in capsys.readouterr().err


def test_the_driver_s_newest_log(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.root / "logs" / "driver"
    folder.mkdir()
    (folder / "7.log").write_text("driver's words\n")
    assert logs(run, "--party", "driver", "--follow") == 0
    assert "driver's words" in capsys.readouterr().out


def test_restarts_and_nodes_of_a_job_have_logs_of_their_own(run: RunDir) -> None:
    folder = run.root / "logs" / "client-1"
    for name in ("02-ab12cd34-10", "02-ab12cd34-2", "02-ab12cd34-2.node1", "02-ab12cd34-x", "02-ab12cd3-4"):
        (folder / f"r01-learn.{name}.log").write_text("")
    found = [(log.restart, log.node) for log in attempt_logs(run, LEARN, "02-ab12cd34")]
    assert found == [(2, 0), (2, 1), (10, 0)]
    newest = newest_log(run, LEARN, "02-ab12cd34")
    assert newest is not None and newest.path.name == "r01-learn.02-ab12cd34-10.log"
    assert newest_log(run, LEARN, "09-none") is None


def test_the_tail_holds_whole_lines_alone(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("first line\nsecond line\n\nthird")
    assert tail(log) == ["first line", "second line", "third"]
    assert tail(log, 14) == ["third"]
    assert tail(tmp_path / "none") == []


def test_following_goes_over_to_the_next_attempt_and_ends_when_nobody_works(tmp_path: Path) -> None:
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    first.write_text("a\n")
    files, alive = [first], [True]

    def write_more() -> None:
        steps.pop(0)()

    def go_over() -> None:
        second.write_text("c\xe9\n", encoding="utf-8")
        files[0] = second

    def end() -> None:
        alive[0] = False

    # Whether anybody works is asked at every tenth look without news.
    steps = [lambda: first.write_text("a\nb\n"), go_over, end, *[lambda: None] * 20]
    shown = "".join(follow(lambda: files[0], lambda: alive[0], pause=write_more))
    assert shown == f"-- {first}\na\nb\n-- {second}\nc\xe9\n"
    assert steps, "it ended by itself"


def test_following_a_run_that_is_over_shows_it_and_ends(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.logs.SECONDS_BETWEEN_LOOKS", 0.0)
    assert logs(run, "--party", "client-1", "--step", "learn", "--follow") == 0
    assert capsys.readouterr().out.endswith("last words 0�[2J\n")


def test_an_attempt_without_an_end(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.commit(LEARN).rename(run.root / "gone")
    Ledger(run.ledger_jsonl).write("started", stage=str(LEARN), attempt="03-c", change={"memory": 1.5})
    assert logs(run, "--party", "client-1", "--step", "learn") == 0
    assert "attempt 03-c, with memory 1.5: no end seen yet" in capsys.readouterr().out
