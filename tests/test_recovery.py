"""What a kill or a hand can leave behind, and that the same command mends it to the same bytes."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from lada.driver import Driver, Ended
from lada.errors import BusyError, ExchangeError
from lada.inbox import Inbox
from lada.lease import lease
from lada.plan import read_plan
from lada.policy import Change
from lada.records import Response
from lada.rundir import RunDir, Stage
from lada.runs import open_run
from lada.stage import InProcess
from tests.federation import Quiet, drive
from tests.federation import make as make_run
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]


def make(runs: Path, *settings: str) -> RunDir:
    return make_run(runs, *SETTINGS, *settings, small=False)


@pytest.fixture(scope="module")
def finished(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("finished")))


@pytest.fixture()
def copy(finished: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(finished.root, tmp_path / finished.root.name)
    return RunDir(tmp_path / finished.root.name)


def test_a_finished_run_without_its_results_gets_them_back(copy: RunDir, finished: RunDir) -> None:
    copy.metrics_csv.unlink()
    drive(copy)
    assert copy.metrics_csv.read_bytes() == finished.metrics_csv.read_bytes()


def test_a_finished_run_whose_last_commit_was_not_published_gets_published(
    copy: RunDir, finished: RunDir
) -> None:
    shutil.rmtree(copy.root / "exchange" / "server" / "all" / "r02-learn")
    drive(copy)
    again = copy.root / "exchange" / "server" / "all" / "r02-learn" / "rewards.jsonl"
    assert again.read_bytes() == (finished.root / again.relative_to(copy.root)).read_bytes()


def test_results_that_are_right_are_not_written_again(copy: RunDir) -> None:
    before = copy.metrics_csv.stat().st_mtime_ns
    drive(copy)
    assert copy.metrics_csv.stat().st_mtime_ns == before


def test_a_commit_folder_without_a_manifest_is_set_aside_and_the_stage_runs_again(
    copy: RunDir, finished: RunDir
) -> None:
    stage = Stage(2, "learn", "client-1")
    (copy.commit(stage) / "manifest.json").unlink()
    drive(copy)
    assert copy.is_committed(stage)
    assert copy.metrics_csv.read_bytes() == finished.metrics_csv.read_bytes()
    assert list((copy.party("client-1") / ".rejected").glob("r02-learn.*"))


def test_an_older_message_never_stands_in_for_one_that_is_missing(copy: RunDir) -> None:
    shutil.rmtree(copy.root / "exchange" / "server" / "client-1" / "r02-respond")
    config = Driver(copy, InProcess(copy, lambda *_: Quiet())).config
    inbox = Inbox(copy, config, read_plan(copy), Stage(2, "learn", "client-1"))
    with pytest.raises(ExchangeError, match=r"server/r02-respond/responses\.jsonl: check 'missing'"):
        inbox.latest("server", "responses.jsonl", Response, steps=("respond",))


class OneAtATime(InProcess):
    """Like a cluster: stages wait, and each look finds one more that has ended.

    The first attempt of ``client-1/r01-learn`` fails, after something broke an earlier commit.
    """

    def __init__(self, run: RunDir) -> None:
        super().__init__(run, lambda stage, attempt: Quiet())
        self.run, self.queue, self.broken = run, deque[tuple[Stage, str]](), False

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
        if stage == Stage(1, "learn", "client-1") and not self.broken:
            self.queue.appendleft((stage, attempt))
        else:
            self.queue.append((stage, attempt))
        return {}

    def poll(self) -> list[Ended]:
        if not self.queue:
            return []
        stage, attempt = self.queue.popleft()
        if stage == Stage(1, "learn", "client-1") and not self.broken:
            self.broken = True
            (self.run.commit(Stage(1, "respond", "client-1")) / "manifest.json").unlink()
            return [Ended(stage, 5, "an input is broken", 0.0)]
        super().start(stage, attempt, Change())
        return super().poll()


def test_an_earlier_stage_runs_again_while_a_sibling_is_still_at_work(
    finished: RunDir, tmp_path: Path
) -> None:
    run = make(tmp_path)
    launcher = OneAtATime(run)
    Driver(run, launcher, poll_seconds=0.0).drive()
    assert launcher.broken
    assert run.metrics_csv.read_bytes() == finished.metrics_csv.read_bytes()


def test_fresh_is_refused_while_a_driver_is_at_work(tmp_path: Path) -> None:
    from lada.layers import layers

    run = make(tmp_path)
    found = layers(
        scenario="one-client", method="lada", dataset="lab-math", size="tiny", settings=list(SETTINGS)
    )
    with lease(run.lease), pytest.raises(BusyError):
        open_run(found, tmp_path, fresh=True)
    assert run.root.is_dir()
