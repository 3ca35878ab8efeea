"""Attempts put together from the ledger: real drivers' events, and those that only a cluster has."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.history import all_jobs, read_history
from lada.errors import StageError
from lada.ledger import Ledger
from lada.rundir import RunDir, Stage
from tests.fake_runs import commit_stage, drive, full_outbox, good, make_run

pytestmark = pytest.mark.usefixtures("no_fsync")


def crash(run: RunDir, stage: Stage, attempt: str) -> int:
    return 1


def broken(run: RunDir, stage: Stage, attempt: str) -> int:
    """Commits something that the driver refuses."""
    commit_stage(run, stage, attempt=attempt, outbox=full_outbox(stage))
    (run.commit(stage) / "metrics.json").write_text("{}\n")
    return 0


def test_a_driver_s_ledger_gives_each_attempt_with_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    drive(run, {"client-1/r01-respond": [crash, good], "server/r01-learn": [broken, good]})
    history = read_history(Ledger(run.ledger_jsonl).read())
    assert [one.outcome for one in history["client-1/r00-prepare"]] == ["committed"]
    first, second = history["client-1/r01-respond"]
    assert (first.outcome, first.cause, first.exit_code, first.action) == ("failed", "crashed", 1, "retry")
    assert (second.outcome, second.seconds) == ("committed", 0.25)
    assert first.name.startswith("01-") and second.name.startswith("02-")
    assert first.began is not None and first.ended is not None and first.began <= first.ended
    assert history["server/r01-learn"][0].outcome in ("rejected", "failed")
    assert history["server/r01-learn"][-1].outcome == "committed"


def test_an_attempt_that_never_ended_stays_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")

    def interrupted(run: RunDir, stage: Stage, attempt: str) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(run, {"client-1/r00-prepare": [interrupted]})
    (only,) = read_history(Ledger(run.ledger_jsonl).read())["client-1/r00-prepare"]
    assert (only.outcome, only.seconds) == ("open", None)


def test_a_stop_is_the_last_failure(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    with pytest.raises(StageError):
        drive(run, {"client-1/r00-prepare": [lambda *_: 3]})
    (only,) = read_history(Ledger(run.ledger_jsonl).read())["client-1/r00-prepare"]
    assert (only.cause, only.action, only.exit_code) == ("user_error", "stop", 3)


def test_jobs_resources_changes_and_cancellation() -> None:
    stage, asked = "client-1/r01-learn", {"nodes": 1}
    events = [
        {"event": "driver-submitted", "job": "1", "time": 1.0},
        {"event": "driver-began", "job": "1", "time": 2.0},
        {"event": "started", "stage": stage, "attempt": "01-a", "time": 3.0},
        {
            "event": "submitted",
            "stage": stage,
            "attempt": "01-a",
            "job": "2",
            "time": 4.0,
            "resources": {"nodes": 1},
        },
        {
            "event": "failed",
            "stage": stage,
            "attempt": "01-a",
            "cause": "node_lost",
            "node": "n2",
            "time": 5.0,
        },
        {"event": "started", "stage": stage, "attempt": "02-b", "change": {"exclude": ["n2"]}, "time": 6.0},
        {"event": "submitted", "stage": stage, "attempt": "02-b", "job": "3", "time": 7.0},
        {"event": "adopted", "stage": stage, "attempt": "02-b", "job": "3", "time": 8.0},
        {"event": "cancelled", "jobs": ["1", "3"], "time": 9.0},
        {"event": "cancelled", "jobs": None, "time": 9.5},
    ]
    first, second = read_history(events)[stage]
    assert (first.job, first.node, first.submitted, first.resources) == ("2", "n2", 4.0, asked)
    assert second.change == {"exclude": ["n2"]}
    assert (second.job, second.submitted, second.outcome, second.cause) == (
        "3",
        7.0,
        "cancelled",
        "cancelled",
    )
    assert all_jobs(events) == ["1", "2", "3"]


def test_what_names_no_stage_or_no_attempt_is_left_out() -> None:
    assert read_history([{"event": "paused"}, {"event": "committed", "stage": "a/r01-b"}]) == {"a/r01-b": ()}
