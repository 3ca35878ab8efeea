"""A run that is killed anywhere and started again ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from lada.errors import BusyError, ChangedError, ConfigError
from lada.faults import POINTS, crash_point
from lada.results import read_metrics
from lada.reuse import SHARED
from lada.rundir import RunDir
from tests.smallest_models import SETTINGS
from tests.warm import Warm

pytestmark = pytest.mark.slow


def command(runs: Path, *more: str) -> list[str]:
    settings = " ".join(SETTINGS)
    return [
        "run",
        "--scenario",
        "one-client",
        "--size",
        "tiny",
        "--runs",
        str(runs),
        "--set",
        settings,
        *more,
    ]


def only(runs: Path) -> RunDir:
    (root,) = [path for path in runs.iterdir() if path.name != SHARED]
    return RunDir(root)


def results(run: RunDir) -> dict[str, bytes]:
    """metrics.csv and all that the parties computed; manifests name attempts, so they differ."""
    stages = [path for path in run.root.glob("parties/*/r*/**/*") if path.is_file()]
    messages = [path for path in (run.root / "exchange").rglob("*") if path.is_file()]
    files = [run.metrics_csv, run.run_yaml, run.plan_json, run.public, run.sealed, *stages, *messages]
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in files
        if path.name != "manifest.json"
    }


def leftovers(run: RunDir) -> list[Path]:
    staging = [path for folder in run.root.glob("parties/*/.staging") for path in folder.iterdir()]
    return [
        *staging,
        *run.root.rglob("*.tmp"),
        *run.root.glob("parties/*/.rejected"),
        *run.root.glob("driver.lease"),
    ]


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, float]:
    runs = tmp_path_factory.mktemp("undisturbed")
    outcome = warm.run(command(runs))
    assert outcome.code == 0, outcome.output
    return only(runs), outcome.seconds


def test_an_undisturbed_run_trains_on_pairs_and_publishes_every_kind(
    undisturbed: tuple[RunDir, float],
) -> None:
    """Else the sweep below would prove little."""
    files = results(undisturbed[0])
    for name in ("ids.jsonl", "responses.jsonl", "rewards.jsonl", "adapter.safetensors"):
        assert any(path.startswith("exchange/") and path.endswith(name) for path in files), name
    assert any(content for path, content in files.items() if path.endswith("/rewards.jsonl"))
    assert b"train_loss" in files["metrics.csv"]
    assert leftovers(undisturbed[0]) == []


SWEEP = [*POINTS, *(f"{point}:2" for point in POINTS if not point.startswith("init."))]


@pytest.mark.parametrize("point", SWEEP)
def test_killed_at_a_point_and_started_again(
    point: str, warm: Warm, undisturbed: tuple[RunDir, float], tmp_path: Path
) -> None:
    killed = warm.run(command(tmp_path), crash_at=point)
    assert killed.code == -9, killed.output
    resumed = warm.run(command(tmp_path))
    assert resumed.code == 0, resumed.output
    assert results(only(tmp_path)) == results(undisturbed[0])
    assert leftovers(only(tmp_path)) == []


def test_killed_again_and_again_at_any_time(
    warm: Warm, undisturbed: tuple[RunDir, float], tmp_path: Path
) -> None:
    reference, seconds = undisturbed
    draw, codes = random.Random(0), []
    for _ in range(8):
        codes.append(warm.run(command(tmp_path), kill_after=seconds * draw.uniform(0.05, 0.4)).code)
        if codes[-1] == 0:  # the machine was slower when the time was taken
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            seconds /= 2
    assert set(codes) <= {-9, 0}
    assert -9 in codes
    last = warm.run(command(tmp_path))
    assert last.code == 0, last.output
    assert results(only(tmp_path)) == results(reference)
    assert leftovers(only(tmp_path)) == []


def test_a_finished_run_is_left_as_it_is(warm: Warm, undisturbed: tuple[RunDir, float]) -> None:
    run, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    outcome = warm.run(command(run.root.parent))
    assert outcome.code == 0
    assert "Nothing is left to do" in outcome.output
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before


@pytest.fixture()
def half(warm: Warm, tmp_path: Path) -> RunDir:
    """A run that stopped after its preparation."""
    outcome = warm.run(command(tmp_path, "--until-round", "0"))
    assert outcome.code == 0, outcome.output
    return only(tmp_path)


def test_a_run_whose_code_changed_goes_on_only_if_asked(
    half: RunDir, warm: Warm, undisturbed: tuple[RunDir, float]
) -> None:
    then = json.loads(half.provenance_json.read_text())
    half.provenance_json.write_text(json.dumps({**then, "code": "0" * 64}))
    refused = warm.run(command(half.root.parent))
    assert refused.code == ChangedError.exit_code
    assert "code: 00000000 -> " in refused.output
    assert "AMEND=1" in refused.output
    amended = warm.run(command(half.root.parent, "--amend"))
    assert amended.code == 0, amended.output
    history = json.loads(half.provenance_json.read_text())["amended_from"]
    assert [one["code"] for one in history] == ["0" * 64]
    assert results(half) == results(undisturbed[0])


def test_an_edited_run_yaml_is_refused_and_fresh_starts_anew(
    half: RunDir, warm: Warm, undisturbed: tuple[RunDir, float]
) -> None:
    half.run_yaml.write_text(half.run_yaml.read_text().replace("weight_decay: 0.0", "weight_decay: 0.5"))
    refused = warm.run(command(half.root.parent))
    assert refused.code == ChangedError.exit_code
    assert f"{half.run_yaml} was edited: training.client.weight_decay 0.0 -> 0.5" in refused.output
    assert "AMEND=1" in refused.output
    fresh = warm.run(command(half.root.parent, "--fresh"))
    assert fresh.code == 0, fresh.output
    assert half.root.with_name(f"{half.root.name}.old-1").is_dir()
    assert results(half) == results(undisturbed[0])


def test_an_edited_run_yaml_holds_for_what_is_still_to_do_when_somebody_insists(
    half: RunDir, warm: Warm, undisturbed: tuple[RunDir, float]
) -> None:
    done = {path: path.read_bytes() for path in half.root.glob("parties/*/r*/manifest.json")}
    assert done
    half.run_yaml.write_text(half.run_yaml.read_text().replace("weight_decay: 0.0", "weight_decay: 0.5"))
    amended = warm.run(command(half.root.parent, "--amend"))
    assert amended.code == 0, amended.output
    assert f"{half.run_yaml} was edited: training.client.weight_decay" in amended.output
    assert all(path.read_bytes() == content for path, content in done.items())
    assert half.metrics_csv.read_bytes() != undisturbed[0].metrics_csv.read_bytes()
    identities = {row["run_id"] for row in read_metrics(half.metrics_csv)}
    assert identities == {half.root.name}, "it is still the same run"


def test_an_edit_of_what_the_folder_is_made_of_cannot_be_insisted_on(half: RunDir, warm: Warm) -> None:
    half.run_yaml.write_text(half.run_yaml.read_text().replace("num_train: ", "num_train: 1"))
    refused = warm.run(command(half.root.parent, "--amend"))
    assert refused.code == ChangedError.exit_code
    assert "data.num_train" in refused.output and "FRESH=1" in refused.output


def test_a_run_that_another_host_drives_is_refused(half: RunDir, warm: Warm) -> None:
    half.lease.write_text(json.dumps({"host": "elsewhere", "pid": 7, "start": "x"}))
    outcome = warm.run(command(half.root.parent))
    assert outcome.code == BusyError.exit_code
    assert "process 7 on elsewhere drives this run" in outcome.output


def test_a_mistake_ends_with_its_code_and_makes_no_folder(warm: Warm, tmp_path: Path) -> None:
    outcome = warm.run(command(tmp_path, "--set", "method.reward.profil=paper"))
    assert outcome.code == ConfigError.exit_code
    assert "did you mean 'profile'" in outcome.output
    assert list(tmp_path.iterdir()) == []


def test_a_message_lost_between_two_commands_is_sent_again(
    half: RunDir, warm: Warm, undisturbed: tuple[RunDir, float]
) -> None:
    shutil.rmtree(half.root / "exchange" / "client-1")
    outcome = warm.run(command(half.root.parent))
    assert outcome.code == 0, outcome.output
    assert results(half) == results(undisturbed[0])


def test_without_the_variable_a_point_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LADA_CRASH_AT", raising=False)
    for point in POINTS:
        assert crash_point(point) is None  # type: ignore[func-returns-value]


def test_an_unknown_point_is_a_broken_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADA_CRASH_AT", "none")
    with pytest.raises(AssertionError, match="no-such-point"):
        crash_point("no-such-point")
