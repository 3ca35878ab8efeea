"""The driver's loop: with scripted stages every turn that a run can take, with real stages the run itself."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lada.config import ExchangeOptions
from lada.driver import Driver, Ended
from lada.errors import NOT_RETRIED, BusyError, DataError, ExchangeError, StageError
from lada.exchange import is_published_whole, message_dir, publish
from lada.incoming import read_message
from lada.layers import read_run
from lada.ledger import Ledger
from lada.manifest import MANIFEST
from lada.plan import read_plan
from lada.policy import Cause, Change
from lada.results import write_metrics
from lada.rundir import RunDir, Stage, sha256
from tests.fake_runs import (
    Behaviour,
    ScriptedLauncher,
    adapter,
    commit_and_publish,
    commit_stage,
    drive,
    full_outbox,
    good,
    make_run,
)

pytestmark = pytest.mark.usefixtures("no_fsync")

EVERY = [
    "server/r00-prepare",
    "client-1/r00-prepare",
    "server/r01-respond",
    "client-1/r01-respond",
    "server/r01-learn",
    "client-1/r01-learn",
    "server/r02-respond",
    "client-1/r02-respond",
    "server/r02-learn",
    "client-1/r02-learn",
]
TARGET = "client-1/r01-learn"
LEARN = Stage(1, "learn", "client-1")


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """metrics.csv of a run in which nothing went wrong."""
    found = make_run(tmp_path_factory.mktemp("undisturbed"))
    drive(found)
    return found.metrics_csv.read_bytes()


def events(run: RunDir, name: str) -> list[dict[str, object]]:
    return [event for event in Ledger(run.ledger_jsonl).read() if event["event"] == name]


def silent(run: RunDir, stage: Stage, attempt: str) -> int:
    """Ends well and commits nothing."""
    return 0


def fails(code: int) -> Behaviour:
    return lambda run, stage, attempt: code


def dies_after_commit(run: RunDir, stage: Stage, attempt: str) -> int:
    """Commits, then is killed before it publishes."""
    commit_stage(run, stage, attempt=attempt)
    return -9


def damaged(name: str) -> Behaviour:
    def behave(run: RunDir, stage: Stage, attempt: str) -> int:
        path = commit_and_publish(run, stage, attempt) / name
        path.write_bytes(path.read_bytes()[:-4])
        return 0

    return behave


def breaks(other: Stage, name: str, code: int = 5) -> Behaviour:
    """Finds an earlier commit broken: something damaged it while the run was under way."""

    def behave(run: RunDir, stage: Stage, attempt: str) -> int:
        path = run.commit(other) / name
        path.write_bytes(path.read_bytes() + b"x")
        return code

    return behave


def nan_adapter(run: RunDir, stage: Stage, attempt: str) -> int:
    outbox = full_outbox(stage)
    payload = outbox.public["all"]["adapter.safetensors"]
    outbox.send("all", "adapter.safetensors", type(payload)("adapters", 1, adapter(float("nan"))))
    commit_stage(run, stage, attempt=attempt, outbox=outbox)
    publish(run, stage)
    return 0


def other_adapter(run: RunDir, stage: Stage, attempt: str) -> int:
    outbox = full_outbox(stage)
    payload = outbox.public["all"]["adapter.safetensors"]
    outbox.send("all", "adapter.safetensors", type(payload)("adapters", 1, adapter(shape=(3, 3))))
    commit_stage(run, stage, attempt=attempt, outbox=outbox)
    return 0


# -- the ordinary way


def test_stages_start_in_the_order_of_the_plan_each_once(run: RunDir, expected: bytes) -> None:
    assert drive(run).started == EVERY
    assert run.metrics_csv.read_bytes() == expected
    assert [event["stage"] for event in events(run, "committed")] == EVERY


def test_a_finished_run_starts_nothing(run: RunDir, expected: bytes) -> None:
    drive(run)
    launcher = ScriptedLauncher(run)
    assert Driver(run, launcher).drive() is False
    assert launcher.started == []
    assert run.metrics_csv.read_bytes() == expected


def test_a_driver_that_died_after_the_last_commit_is_followed_by_one_that_says_done(run: RunDir) -> None:
    drive(run)
    kept = [line for line in run.ledger_jsonl.read_text().splitlines() if "driver-ended" not in line]
    run.ledger_jsonl.write_text("\n".join(kept) + "\n")
    assert not Ledger(run.ledger_jsonl).says_finished()
    assert drive(run).started == []
    assert Ledger(run.ledger_jsonl).says_finished()
    before = run.ledger_jsonl.read_bytes()
    drive(run)
    assert run.ledger_jsonl.read_bytes() == before, "and then nothing is written any more"


def test_rounds_stops_after_a_round_and_the_next_call_goes_on(run: RunDir, expected: bytes) -> None:
    assert drive(run, rounds=0).started == EVERY[:2]
    assert drive(run, rounds=1).started == EVERY[2:6]
    assert drive(run, rounds=1).started == []
    assert drive(run).started == EVERY[6:]
    assert run.metrics_csv.read_bytes() == expected


def test_a_group_begins_when_the_one_before_is_published_whole(run: RunDir) -> None:
    def sees_all(run: RunDir, stage: Stage, attempt: str) -> int:
        assert all(is_published_whole(run, Stage(1, "respond", party)) for party in ("server", "client-1"))
        return good(run, stage, attempt)

    drive(run, {"server/r01-learn": [sees_all], TARGET: [sees_all]})


# -- attempts that fail


@pytest.mark.parametrize(
    "behaviour",
    [silent, fails(1), fails(5), fails(7), fails(-9), fails(137)],
    ids=["silent", 1, 5, 7, -9, 137],
)
def test_a_failed_attempt_is_repeated_and_leaves_no_trace_in_the_results(
    behaviour: Behaviour, run: RunDir, expected: bytes
) -> None:
    started = drive(run, {TARGET: [behaviour, behaviour]}).started
    assert started.count(TARGET) == 3
    assert len(started) == len(EVERY) + 2
    assert run.metrics_csv.read_bytes() == expected
    assert len(events(run, "failed")) == 2


@pytest.mark.parametrize("code", sorted(NOT_RETRIED))
def test_hopeless_exit_codes_end_the_run_at_once(code: int, run: RunDir) -> None:
    launcher = ScriptedLauncher(run, {TARGET: [fails(code)] * 9})
    with pytest.raises(
        StageError, match=rf"{TARGET} failed for good: scripted {code}\nlogs: .*logs/client-1"
    ):
        Driver(run, launcher).drive()
    assert launcher.started.count(TARGET) == 1


def test_a_stage_that_never_commits_ends_the_run_after_the_last_attempt(run: RunDir) -> None:
    launcher = ScriptedLauncher(run, {TARGET: [silent] * 9})
    with pytest.raises(StageError, match=rf"{TARGET} failed 2 times: ended without a commit"):
        Driver(run, launcher, max_attempts=2).drive()
    assert launcher.started.count(TARGET) == 2
    assert launcher.started[-1] == TARGET, "nothing later was started"
    assert drive(run).started == EVERY[5:], "the next command goes on where it was"


def test_a_killed_attempt_that_had_committed_counts(run: RunDir, expected: bytes) -> None:
    started = drive(run, {TARGET: [dies_after_commit]}).started
    assert started == EVERY
    assert is_published_whole(run, LEARN)
    assert run.metrics_csv.read_bytes() == expected


def test_attempts_have_different_names(run: RunDir) -> None:
    drive(run, {TARGET: [silent, silent]})
    names = [event["attempt"] for event in events(run, "started") if event["stage"] == TARGET]
    assert [str(name)[:2] for name in names] == ["01", "02", "03"]


def test_the_driver_asks_again_until_a_launcher_has_news(run: RunDir) -> None:
    class Slow(ScriptedLauncher):
        def poll(self):  # type: ignore[no-untyped-def]
            return super().poll() if self.polls % 3 == 2 else self._wait()

        def _wait(self) -> list[object]:
            self.polls += 1
            return []

    launcher = Slow(run)
    Driver(run, launcher, poll_seconds=0.0).drive()
    assert launcher.started == EVERY


def ends(cause: Cause, node: str = "n1") -> Behaviour:
    """An attempt of which the launcher knows why it failed; what it does is `silent`."""

    def behave(run: RunDir, stage: Stage, attempt: str) -> int:
        Knowing.causes.append((cause, node))
        return 1

    return behave


class Knowing(ScriptedLauncher):
    """A launcher that tells causes and nodes, as Slurm's does."""

    causes: ClassVar[list[tuple[Cause, str]]] = []

    def poll(self) -> list[Ended]:
        ended = super().poll()
        if not self.causes or not any(end.exit_code for end in ended):
            return ended
        cause, node = self.causes.pop()
        return [replace(end, cause=cause, node=node, job="7") if end.exit_code else end for end in ended]


def changes(launcher: ScriptedLauncher) -> list[Change]:
    return [change for name, change in zip(launcher.started, launcher.changes, strict=True) if name == TARGET]


def test_a_retry_gets_what_the_failure_lacked_and_the_ledger_says_so(run: RunDir, expected: bytes) -> None:
    script = [ends(Cause.OUT_OF_MEMORY), ends(Cause.NODE_LOST, "n2"), ends(Cause.DEVICE_MEMORY)]
    launcher = Knowing(run, {TARGET: list(script)})
    Driver(run, launcher, poll_seconds=0.0).drive()
    assert changes(launcher) == [
        Change(),
        Change(memory=1.5),
        Change(memory=1.5, exclude=("n2",)),
        Change(memory=1.5, exclude=("n2",), micro_batch_divisor=2),
    ]
    failed = events(run, "failed")
    assert [(event["cause"], event["node"], event["job"], event["action"]) for event in failed] == [
        ("out_of_memory", "n1", "7", "retry"),
        ("node_lost", "n2", "7", "retry"),
        ("device_memory", "n1", "7", "retry"),
    ]
    assert run.metrics_csv.read_bytes() == expected


def test_a_requeued_driver_remembers_failures_and_a_person_starts_afresh(run: RunDir) -> None:
    launcher = ScriptedLauncher(run, {TARGET: [silent] * 9})
    with pytest.raises(StageError, match="failed 3 times"):
        Driver(run, launcher).drive()
    with pytest.raises(StageError, match="failed 4 times"):
        Driver(run, ScriptedLauncher(run, {TARGET: [silent] * 9}), continued=True).drive()
    afresh = ScriptedLauncher(run, {TARGET: [silent] * 2})
    Driver(run, afresh).drive()
    assert afresh.started.count(TARGET) == 3
    assert [event["continued"] for event in events(run, "driver-began")] == [False, True, False]


def test_a_live_attempt_is_adopted_not_started_twice(run: RunDir, expected: bytes) -> None:
    class Alive(ScriptedLauncher):
        def adopt(self, stage: Stage) -> dict[str, Any] | None:
            if str(stage) != TARGET or run.is_committed(stage):
                return None
            self._ended.append(Ended(stage, good(self.run, stage, "01-old"), "", 1.0))
            return {"job": "77", "attempt": "01-old"}

    launcher = Alive(run)
    Driver(run, launcher, poll_seconds=0.0).drive()
    assert TARGET not in launcher.started
    assert [(event["stage"], event["job"]) for event in events(run, "adopted")] == [(TARGET, "77")]
    assert run.metrics_csv.read_bytes() == expected


def test_a_full_disk_pauses_the_run_until_there_is_space(
    run: RunDir, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    monkeypatch.setattr("lada.driver.can_write", lambda folder: answers.pop(0))
    monkeypatch.setattr("lada.driver.time.sleep", lambda seconds: None)
    said: list[str] = []
    launcher = ScriptedLauncher(run, {TARGET: [fails(12)]})
    Driver(run, launcher, report=said.append, poll_seconds=0.0).drive()
    assert answers == []
    assert [
        event["event"] for event in Ledger(run.ledger_jsonl).read() if event["event"] in ("paused", "went-on")
    ] == [
        "paused",
        "went-on",
    ]
    assert any("paused: scripted 12" in line for line in said)
    assert launcher.started.count(TARGET) == 2
    assert run.metrics_csv.read_bytes() == expected


def test_a_full_disk_under_the_driver_itself_pauses_it_too(
    run: RunDir, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]

    def write(*arguments: Any) -> None:
        if full:
            raise full.pop()
        write_metrics(*arguments)

    monkeypatch.setattr("lada.driver.write_metrics", write)
    monkeypatch.setattr("lada.driver.time.sleep", lambda seconds: None)
    launcher = drive(run)
    assert full == []
    assert launcher.started == EVERY
    assert run.metrics_csv.read_bytes() == expected


def stumbling(monkeypatch: pytest.MonkeyPatch, *lines: tuple[str, str]) -> None:
    """The file server fails when these lines of the ledger (event, stage) are to be written, once each."""
    write, left = Ledger.write, list(lines)

    def stumbles(ledger: Ledger, event: str, **fields: Any) -> None:
        if (event, fields.get("stage")) in left:
            left.remove((event, fields["stage"]))
            raise OSError(errno.EIO, "Input/output error")
        write(ledger, event, **fields)

    monkeypatch.setattr(Ledger, "write", stumbles)
    monkeypatch.setattr("lada.driver.time.sleep", lambda seconds: None)


def test_what_ended_before_an_error_that_was_waited_out_is_told_all_the_same(
    run: RunDir, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages end in one look: the first's line fails, and the second is not looked at."""
    stumbling(monkeypatch, *(("committed", stage) for stage in ("server/r01-learn", *EVERY[-2:])))
    assert drive(run).started == EVERY
    assert sorted(str(event["stage"]) for event in events(run, "committed")) == sorted(EVERY)
    assert run.metrics_csv.read_bytes() == expected


def test_a_failure_is_told_after_an_error_that_was_waited_out(
    run: RunDir, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same micro-batches would be tried again."""
    stumbling(monkeypatch, ("failed", TARGET))
    assert changes(drive(run, {TARGET: [fails(10)]})) == [Change(), Change(micro_batch_divisor=2)]
    assert len(events(run, "failed")) == 1
    assert run.metrics_csv.read_bytes() == expected


def test_failures_still_count_after_an_error_that_was_waited_out(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stutters(run: RunDir, stage: Stage, attempt: str) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("lada.driver.time.sleep", lambda seconds: None)
    found = changes(drive(run, {TARGET: [fails(10), stutters]}))
    assert found == [Change(), Change(micro_batch_divisor=2), Change(micro_batch_divisor=2)]
    assert [event["continued"] for event in events(run, "driver-began")] == [False, True]


def test_too_little_free_space_holds_back_the_next_stage(
    run: RunDir, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, False, *[True] * 50]
    asked: list[int] = []

    def has_free(folder: Path, count: int) -> bool:
        asked.append(count)
        return answers.pop(0)

    monkeypatch.setattr("lada.driver.has_free", has_free)
    monkeypatch.setattr("lada.driver.time.sleep", lambda seconds: None)
    Driver(run, ScriptedLauncher(run), poll_seconds=0.0, free_bytes=10**9).drive()
    assert set(asked) == {10**9}
    assert len(events(run, "paused")) == 1
    assert run.metrics_csv.read_bytes() == expected


def test_a_driver_that_lost_the_run_starts_nothing_more(run: RunDir) -> None:
    looks = [None] * 3

    def check() -> None:
        if not looks:
            raise BusyError("this driver lost the run")
        looks.pop()

    launcher = ScriptedLauncher(run)
    with pytest.raises(BusyError):
        Driver(run, launcher, poll_seconds=0.0, check=check).drive()
    assert len(launcher.started) < len(EVERY)


def test_a_link_in_the_place_of_an_exchange_folder_leads_nobody_elsewhere(
    run: RunDir, expected: bytes, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def plants(run: RunDir, stage: Stage, attempt: str) -> int:
        commit_stage(run, stage, attempt=attempt)
        folder = message_dir(run, "client-1", "server", stage.name).parent
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(elsewhere)
        run.rejected("client-1").symlink_to(elsewhere)
        return 0

    drive(run, {TARGET: [plants]})
    assert list(elsewhere.iterdir()) == []
    assert is_published_whole(run, LEARN)
    assert any(path.is_symlink() for path in run.rejected("client-1").iterdir())
    assert run.metrics_csv.read_bytes() == expected


# -- commits that are refused


@pytest.mark.parametrize(
    ("behaviour", "check"),
    [
        (damaged("public/server/ids.jsonl"), "size"),
        (damaged(MANIFEST), "manifest"),
        (damaged("state/memory.json"), "size"),
        (damaged("metrics.json"), "size"),
        (damaged(f"public/all/{MANIFEST}"), "manifest"),
        (nan_adapter, "finite"),
        (other_adapter, "tensor-schema"),
    ],
)
def test_a_refused_commit_is_quarantined_with_its_reason_and_the_stage_runs_again(
    behaviour: Behaviour, check: str, run: RunDir, expected: bytes
) -> None:
    started = drive(run, {TARGET: [behaviour]}).started
    assert started.count(TARGET) == 2
    (quarantined,) = run.rejected("client-1").iterdir()
    assert quarantined.name.startswith("r01-learn")
    reason = (quarantined / "reason.txt").read_text()
    assert reason.startswith("client-1/r01-learn/")
    assert f"check '{check}' failed" in reason
    (event,) = events(run, "rejected")
    assert (event["stage"], event["moved_to"]) == (TARGET, quarantined.name)
    assert is_published_whole(run, LEARN)
    assert run.metrics_csv.read_bytes() == expected


def test_a_party_that_always_commits_rubbish_ends_the_run_with_the_reason(run: RunDir) -> None:
    with pytest.raises(StageError, match=r"client-1/r01-learn failed 3 times: .*check 'finite' failed"):
        drive(run, {TARGET: [nan_adapter] * 9})
    assert len(list(run.rejected("client-1").iterdir())) == 3


# -- damage while the run is under way


@pytest.mark.parametrize(
    "name", ["public/server/responses.jsonl", "state/memory.json", "metrics.json", MANIFEST]
)
@pytest.mark.parametrize(
    "other", [Stage(0, "prepare", "server"), Stage(1, "respond", "client-1"), Stage(1, "learn", "server")]
)
def test_an_earlier_commit_that_breaks_in_the_middle_of_a_run_is_made_again(
    name: str, other: Stage, run: RunDir, expected: bytes
) -> None:
    name = name if other.party == "client-1" else name.replace("server", "client-1")
    started = drive(run, {TARGET: [breaks(other, name)]}).started
    assert started.count(str(other)) == 2
    assert started.count(TARGET) == 2
    assert len(started) == len(EVERY) + 2
    assert [path.stem for path in run.rejected(other.party).iterdir()] == [other.name]
    assert run.metrics_csv.read_bytes() == expected


def test_a_commit_that_broke_between_two_commands_is_made_again(run: RunDir, expected: bytes) -> None:
    drive(run)
    (run.commit(LEARN) / "public" / "all" / "adapter.safetensors").write_bytes(b"")
    assert drive(run).started == [TARGET]
    assert run.metrics_csv.read_bytes() == expected


@pytest.mark.parametrize("name", ["responses.jsonl", MANIFEST])
def test_a_message_that_broke_after_publication_is_restored_from_the_commit(
    name: str, run: RunDir, expected: bytes
) -> None:
    """The reader refuses it, the driver restores it, the reader's next attempt finds it whole."""
    folder = message_dir(run, "client-1", "server", "r01-respond")
    seen: list[str] = []

    def reads(run: RunDir, stage: Stage, attempt: str) -> int:
        try:
            run_hashes = {sha256(run.run_yaml.read_bytes())}
            read_message(
                run, "client-1", "server", "r01-respond", limits=ExchangeOptions(), run_hashes=run_hashes
            )
        except ExchangeError as error:
            seen.append(error.check)
            return error.exit_code
        return good(run, stage, attempt)

    def damages_then_reads(run: RunDir, stage: Stage, attempt: str) -> int:
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
        return reads(run, stage, attempt)

    started = drive(run, {"server/r01-learn": [damages_then_reads, reads]}).started
    assert seen == ["size" if name != MANIFEST else "manifest"]
    assert started.count("client-1/r01-respond") == 1, "the sender need not work again"
    assert started.count("server/r01-learn") == 2
    assert run.metrics_csv.read_bytes() == expected


def test_a_message_that_a_party_planted_before_its_commit_is_replaced(run: RunDir, expected: bytes) -> None:
    def replays(run: RunDir, stage: Stage, attempt: str) -> int:
        old = message_dir(run, "client-1", "server", "r00-prepare")
        shutil.copytree(old, message_dir(run, "client-1", "server", stage.name))
        commit_stage(run, stage, attempt=attempt)
        with pytest.raises(ExchangeError, match="once"):
            publish(run, stage)
        return ExchangeError.exit_code

    assert drive(run, {TARGET: [replays]}).started == EVERY
    assert is_published_whole(run, LEARN)
    assert run.metrics_csv.read_bytes() == expected


def test_healing_leaves_an_attempt_alone_that_is_still_at_work(run: RunDir) -> None:
    """Two stages side by side: while one fails and the run is healed, the other one writes."""
    staging = run.staging(Stage(0, "prepare", "server"), "01-live")

    def slow(run: RunDir, stage: Stage, attempt: str) -> int:
        staging.mkdir(parents=True)
        return good(run, Stage(0, "prepare", "client-1"), "99-other")

    def second_look(run: RunDir, stage: Stage, attempt: str) -> int:
        assert staging.is_dir()
        return good(run, stage, attempt)

    drive(run, {"server/r00-prepare": [slow, second_look]})


def test_a_half_written_ledger_does_not_hinder_a_run(run: RunDir, expected: bytes) -> None:
    drive(run, rounds=1)
    with run.ledger_jsonl.open("ab") as file:
        file.write(b'{"time": 1, "event": "sta')
    drive(run)
    assert run.metrics_csv.read_bytes() == expected
    run.ledger_jsonl.unlink()
    assert drive(run).started == [], "the ledger is a record, never the truth"
    assert run.metrics_csv.read_bytes() == expected


def test_a_file_of_an_unknown_stage_in_the_exchange_does_no_harm(run: RunDir, expected: bytes) -> None:
    for name in ("r07-learn", "rubbish"):
        folder = message_dir(run, "client-1", "all", name)
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
    drive(run)
    assert run.metrics_csv.read_bytes() == expected


def test_a_missing_public_set_is_a_data_error(run: RunDir) -> None:
    run.public.unlink()
    with pytest.raises(DataError, match=r"public\.jsonl: cannot be read"):
        Driver(run, ScriptedLauncher(run))


# -- real stages in this process


@pytest.mark.slow
class TestInProcess:
    """The same turns with real models, real generation and real training."""

    @pytest.fixture(scope="class")
    def undisturbed(self, tiny_run) -> RunDir:  # type: ignore[no-untyped-def]
        from tests.federation import drive as drive_for_real

        return drive_for_real(tiny_run("undisturbed"))

    def test_damage_in_the_middle_heals_to_the_same_bytes(self, tiny_run, undisturbed: RunDir) -> None:  # type: ignore[no-untyped-def]
        from lada.stage import InProcess
        from tests.federation import Quiet

        run = tiny_run("damaged")

        class Saboteur(InProcess):
            """Before a stage, breaks what it is about to read: its own state, then a message to it."""

            done: set[str] = set()  # noqa: RUF012

            def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
                if stage.name == "r02-respond" and str(stage) not in self.done:
                    self.done.add(str(stage))
                    if stage.party == "client-1":
                        path = run.commit(Stage(1, "learn", "client-1")) / "state" / "model.safetensors"
                    else:
                        path = message_dir(run, "client-1", "server", "r01-learn") / "ids.jsonl"
                    path.write_bytes(path.read_bytes()[:-1])
                return super().start(stage, attempt, change)

        Driver(run, Saboteur(run, lambda stage, attempt: Quiet()), poll_seconds=0.0).drive()
        assert len(Saboteur.done) == 2
        details = [str(event["detail"]) for event in events(run, "failed")]
        assert any("client-1/r01-learn/state/model.safetensors" in detail for detail in details)
        assert any("client-1/r01-learn/ids.jsonl" in detail for detail in details)
        assert run.metrics_csv.read_bytes() == undisturbed.metrics_csv.read_bytes()

    def test_a_full_disk_ends_the_attempt_and_not_the_driver(self, tiny_run) -> None:  # type: ignore[no-untyped-def]
        from lada.stage import InProcess
        from tests.federation import Quiet

        run = tiny_run("full")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            launcher = InProcess(run, lambda stage, attempt: Quiet())
            with pytest.raises(
                StageError, match=r"server/r00-prepare failed 2 times: OSError: .*File too large"
            ):
                Driver(run, launcher, max_attempts=2, poll_seconds=0.0).drive()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not any(run.root.glob("parties/*/r00-*"))

    def test_what_a_stage_read_is_recorded_and_true(self, undisturbed: RunDir) -> None:
        run_config, plan = read_run(undisturbed.root), read_plan(undisturbed)
        assert plan.run_id == run_config.run_id
        manifest = json.loads((undisturbed.commit(Stage(2, "learn", "server")) / MANIFEST).read_text())
        assert set(manifest["inputs"]) == {"client-1/server/r02-respond"}
        for name, digest in manifest["inputs"].items():
            path = message_dir(undisturbed, *name.split("/")) / MANIFEST
            assert sha256(path.read_bytes()) == digest
