"""Local training is done once for a matrix of runs, and a hit is what computing it again would give."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import lada.local
from jobs.gc import find_waste
from jobs.launch import Local
from jobs.select import find_run
from lada import reuse
from lada.__main__ import main
from lada.config import SERVER
from lada.driver import Driver
from lada.layers import read_run
from lada.ledger import Ledger
from lada.local import prepare_client
from lada.manifest import Outbox
from lada.party import json_payload
from lada.plan import read_plan
from lada.policy import Change
from lada.prepared import machine
from lada.reuse import PREPARED, RECORD, SHARED, TAKEN, Prepared, inputs, offer, share, shared_folder
from lada.rundir import RunDir, Stage
from lada.stage import InProcess
from tests.federation import Quiet
from tests.federation import make as make_run
from tests.one_party import party
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab", "no_fsync")]
CLIENT = Stage(0, "prepare", "client-1")
SERVERS = Stage(0, "prepare", SERVER)
ROOT = Path(__file__).parents[1]


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    return make_run(runs, *SETTINGS, "rounds=1", *settings, small=False, **named)


@dataclass
class Told:
    """Takes what a driver says, and what stages say of their phases."""

    lines: list[str] = field(default_factory=list)

    def phase(self, name: str, total: int) -> Callable[[int, str], None]:
        return lambda done, note: self.lines.append(f"{name} {note}".strip())


def drive(run: RunDir, *, sharing: bool = True) -> list[str]:
    """Drive a run; what was said."""
    told = Told()
    Driver(run, InProcess(run, lambda stage, attempt: told), report=told.lines.append, reuse=sharing).drive()
    return told.lines


def results(run: RunDir) -> dict[str, bytes]:
    """Metrics and every file that the parties computed and sent; manifests name attempts, so they differ."""
    parts = ["parties/*/r*/**/*", "exchange/**/*", "metrics.csv"]
    files = [path for part in parts for path in run.root.glob(part) if path.is_file()]
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in files
        if path.name != "manifest.json"
    }


def trained(lines: list[str]) -> bool:
    return any(line.startswith("local training") for line in lines)


def reused(run: RunDir) -> list[str]:
    return [one["stage"] for one in Ledger(run.ledger_jsonl).read() if one["event"] == "reused"]


@pytest.fixture(scope="module")
def first(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run beside which others are made; what it shared must stay as it is."""
    run = make(tmp_path_factory.mktemp("shared"), method="standalone")
    assert trained(drive(run))
    return run


@pytest.fixture()
def beside(first: RunDir, tmp_path: Path) -> Path:
    """A folder of runs with a copy of what the first one shared."""
    shutil.copytree(first.root.parent / SHARED, tmp_path / "runs" / SHARED)
    return tmp_path / "runs"


def entry(run: RunDir, stage: Stage = CLIENT) -> Path:
    found = shared_folder(run, read_run(run.root), stage)
    assert found is not None
    return found


# -- a matrix


@pytest.mark.parametrize("scenario", ["one-client", "1"])
def test_a_matrix_shares_local_training_and_every_byte_is_the_same(scenario: str, tmp_path: Path) -> None:
    for number, method in enumerate(("fedkd", "lada", "sft")):
        here, there = (
            make(tmp_path / name, method=method, scenario=scenario) for name in ("with", "without")
        )
        said, aloud = drive(here), drive(there, sharing=False)
        assert results(here) == results(there)
        assert trained(aloud) and trained(said) == (number == 0)
        first_stages = [str(stage) for stage in next(iter(read_plan(here).groups()))]
        assert sorted(reused(here)) == (sorted(first_stages) if number else [])
        assert reused(there) == []
        assert not list(here.root.glob("parties/*/.reuse"))
        line = "client-1: local training taken from an earlier run with the same inputs"
        assert (line in said) == (number > 0)
        words = "server: test before any training taken from an earlier run with the same inputs"
        assert (words in said) == (number > 0)
    assert not (tmp_path / "without" / SHARED).exists()


def test_stages_in_processes_of_their_own_take_it_too(first: RunDir, beside: Path) -> None:
    run = make(beside, "rounds=2", method="standalone")
    launcher = Local(run)
    Driver(run, launcher, reuse=True).drive()
    assert sorted(reused(run)) == ["client-1/r00-prepare", "server/r00-prepare"]
    logs = "".join(path.read_text() for path in (run.root / "logs" / "client-1").glob("r00-prepare*.log"))
    assert "taken from an earlier run with the same inputs" in logs and "local training" not in logs


def test_the_commit_says_that_it_was_taken_but_holds_the_same_files(first: RunDir, beside: Path) -> None:
    run = make(beside, method="standalone")
    drive(run)
    one, other = (json.loads((each.commit(CLIENT) / "manifest.json").read_text()) for each in (first, run))
    assert one["files"] == other["files"]
    assert one["inputs"] == {} and set(other["inputs"]) == {TAKEN}


# -- the key


def key(run: RunDir, stage: Stage = CLIENT) -> str:
    return entry(run, stage).name


@pytest.mark.parametrize(
    "settings",
    [("rounds=2",), ("training.client.learning_rate=1e-2",), ("exchange.publish_adapters=false",)],
    ids=str,
)
def test_what_comes_after_local_training_does_not_matter(
    settings: tuple[str, ...], first: RunDir, tmp_path: Path
) -> None:
    for stage in (CLIENT, SERVERS):
        assert key(make(tmp_path, *settings, method="lada"), stage) == key(first, stage)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "training.local.learning_rate=1e-2",
        "training.local.micro_tokens=512",
        "local.target=self_rationale",
        "generation.batch_size=3",
        "numerics.threads=2",
        "lora.rank=4",
        "data.num_test=5",
        "shots=1",
    ],
)
def test_whatever_can_change_the_result_changes_the_key(setting: str, first: RunDir, tmp_path: Path) -> None:
    assert key(make(tmp_path, setting, method="standalone")) != key(first)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_party_s_own_data_are_part_of_the_key(part: str, first: RunDir, tmp_path: Path) -> None:
    run = make(tmp_path, method="standalone")
    path = run.data("client-1", part)
    path.write_bytes(path.read_bytes() + b"\n")
    assert key(run) != key(first) and key(run, SERVERS) == key(first, SERVERS)


@pytest.mark.parametrize("name", ["code", "packages", "python", "machine", "image", "weights"])
def test_what_the_run_is_made_with_is_part_of_the_key(name: str, first: RunDir, tmp_path: Path) -> None:
    run = make(tmp_path, method="standalone")
    made = json.loads(run.provenance_json.read_text())
    made[name] = dict.fromkeys(made[name], "other") if isinstance(made[name], dict) else "other"
    run.provenance_json.write_text(json.dumps(made))
    assert key(run) != key(first)


def test_without_provenance_or_weights_nothing_is_shared(tmp_path: Path) -> None:
    run = make(tmp_path, method="standalone")
    run.provenance_json.unlink()
    assert inputs(run, read_run(run.root), CLIENT) is None
    assert offer(run, read_run(run.root), CLIENT) == "" and not run.reuse("client-1").exists()


def test_parties_have_entries_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path, scenario="five-clients", method="standalone")
    names = [key(run, stage) for stage in next(iter(read_plan(run).groups()))]
    assert len(set(names)) == 6


# -- what is broken is ignored


def truncate(folder: Path) -> None:
    path = folder / "state" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "predictions.jsonl"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def lengthen(folder: Path) -> None:
    with (folder / "metrics.json").open("ab") as file:
        file.write(b" ")


def remove(folder: Path) -> None:
    (folder / "metrics.json").unlink()


def link(folder: Path) -> None:
    path = folder / "metrics.json"
    path.rename(folder / "elsewhere")
    path.symlink_to("elsewhere")


def garble(folder: Path) -> None:
    (folder / RECORD).write_text("{}\n")


def point_outside(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    record["files"][0]["path"] = "state/.."
    (folder / RECORD).write_text(json.dumps(record) + "\n")


def twice(folder: Path) -> None:
    (folder / RECORD).write_text(2 * (folder / RECORD).read_text())


BREAKS = [truncate, flip, lengthen, remove, link, garble, point_outside, twice]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda one: one.__name__)
def test_a_broken_entry_is_ignored_said_and_replaced(
    damage: Callable[[Path], None], first: RunDir, beside: Path
) -> None:
    run = make(beside, method="standalone")
    sound = {path.name: path.read_bytes() for path in entry(run).glob("*.json*")}
    damage(entry(run))
    said = drive(run)
    assert any("what an earlier run shared is ignored and removed" in line for line in said)
    assert trained(said) and reused(run) == ["server/r00-prepare"]
    assert results(run) == results(first)
    assert {path.name: path.read_bytes() for path in entry(run).glob("*.json*")} == sound
    assert not list((beside / SHARED).glob(".*"))


@pytest.mark.parametrize("damage", BREAKS[:4] + BREAKS[5:], ids=lambda one: one.__name__)
def test_a_stage_checks_what_it_is_given(damage: Callable[[Path], None], first: RunDir, beside: Path) -> None:
    run = make(beside, method="standalone")
    assert offer(run, read_run(run.root), CLIENT) == ""
    damage(run.reuse("client-1"))
    told = Told()
    one = party(run, "client-1")
    one.reporter = told
    outbox = prepare_client(one)
    assert trained(told.lines) and any("an earlier run's work is ignored" in line for line in told.lines)
    assert one.inbox.read == {}
    path = first.commit(CLIENT) / PREPARED
    assert outbox.private[PREPARED].data == path.read_bytes()


def test_what_another_machine_computed_is_ignored(
    first: RunDir, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    run = make(beside, method="standalone")
    said = drive(run)
    assert trained(said) and reused(run) == []
    assert any("another machine: MKL_CBWR" in line for line in said)


def test_machine_facts_are_texts_and_name_the_processor(first: RunDir) -> None:
    facts = machine(party(first, "client-1"))
    assert {"cpu", "capability", "device", "torch", "threads", "model"} <= set(facts)
    assert facts["model"] != machine(party(first, SERVER))["cpu"]


# -- what is not shared


def test_what_was_computed_with_smaller_batches_is_not_shared(tmp_path: Path) -> None:
    run = make(tmp_path, method="standalone")

    class Small(InProcess):
        def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
            return super().start(stage, attempt, Change(micro_batch_divisor=2))

    Driver(run, Small(run, lambda stage, attempt: Quiet()), reuse=True).drive()
    assert run.is_committed(CLIENT) and not (tmp_path / SHARED).exists()


def test_a_file_that_a_method_changed_afterwards_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lada.methods.standalone as standalone

    def changed(one: Any) -> Outbox:
        outbox = prepare_client(one)
        outbox.private["metrics.json"] = json_payload({"accuracy": 0.5}, "metrics")
        return outbox

    steps = (
        type(standalone.STEPS[0])("prepare", server=lada.local.prepare_server, client=changed, once=True),
    )
    monkeypatch.setattr(standalone, "STEPS", steps)
    run = make(tmp_path, method="standalone")
    drive(run)
    assert not entry(run).exists() and entry(run, SERVERS).is_dir()


def test_switched_off_nothing_is_taken_and_nothing_kept(first: RunDir, beside: Path) -> None:
    run = make(beside, "seed=5", method="standalone")
    drive(run, sharing=False)
    assert not entry(run).exists()
    again = make(beside, method="standalone")
    assert trained(drive(again, sharing=False)) and reused(again) == []


# -- disks, other drivers, parties


@pytest.mark.parametrize("call", ["mkdir", "rename"])
def test_a_full_disk_keeps_nothing_and_stops_nothing(
    call: str, first: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, method="standalone")
    real: Callable[..., Any] = getattr(Path, call)

    def full(path: Path, *rest: Any, **named: Any) -> Any:
        if SHARED in path.parts and path.name != SHARED:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(Path, call, full)
    said = drive(run)
    assert any("is not kept for later runs" in line and "No space" in line for line in said)
    assert results(run) == results(first)
    assert list((tmp_path / SHARED).iterdir()) == []


def test_a_copy_that_finds_no_room_leaves_nothing_behind(
    first: RunDir, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(beside, method="standalone")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "_copy_file", full)
        assert "cannot be read" in offer(run, read_run(run.root), CLIENT)
    assert not run.reuse("client-1").exists()
    assert entry(run).is_dir(), "the entry itself is sound"


def test_the_first_of_two_runs_at_once_wins(
    first: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (make(tmp_path, f"rounds={number}", method="standalone") for number in (1, 2))
    for run in (one, other):
        Driver(run, InProcess(run, lambda stage, attempt: Quiet())).drive()
    real = reuse._copy

    def meanwhile(source: Path, target: Path, record: Prepared) -> None:
        real(source, target, record)
        monkeypatch.setattr(reuse, "_copy", real)
        assert share(other, read_run(other.root), CLIENT) == ""

    monkeypatch.setattr(reuse, "_copy", meanwhile)
    assert share(one, read_run(one.root), CLIENT) == ""
    assert [path.name for path in (tmp_path / SHARED).iterdir()] == [key(one)]


def test_nobody_can_change_what_is_shared_through_a_party_s_folder(first: RunDir, beside: Path) -> None:
    run = make(beside, method="standalone")
    assert offer(run, read_run(run.root), CLIENT) == ""
    given = [path for path in run.reuse("client-1").rglob("*") if path.is_file()]
    assert len(given) >= 4
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in given)


def test_a_link_in_the_place_of_the_folder_is_not_followed(
    first: RunDir, beside: Path, tmp_path: Path
) -> None:
    run = make(beside, method="standalone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    run.reuse("client-1").symlink_to(elsewhere)
    drive(run)
    assert reused(run) == ["server/r00-prepare", "client-1/r00-prepare"]
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]


def test_half_written_folders_of_killed_drivers_go_after_a_day(first: RunDir, tmp_path: Path) -> None:
    run = make(tmp_path, method="standalone")
    old, young = (tmp_path / SHARED / f".{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    drive(run)
    assert not old.exists() and young.exists()


# -- the rest of the suite


def test_the_shared_folder_is_no_run(first: RunDir) -> None:
    runs = first.root.parent
    assert find_run(None, str(runs)).root == first.root
    assert find_waste(first, read_plan(first)) == []


def test_the_command_line_reuses_unless_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(method: str, *more: str) -> str:
        settings = " ".join([*SETTINGS, "rounds=1"])
        given = ["--method", method, "--scenario", "one-client", "--size", "tiny", "--runs", str(tmp_path)]
        assert main(["run", *given, "--set", settings, *more]) == 0
        return capsys.readouterr().out

    assert "taken from" not in run("standalone")
    assert "taken from" not in run("fedkd", "--no-reuse")
    assert "local training taken from an earlier run" in run("sft")


@pytest.mark.parametrize("target", ["run", "run LAUNCHER=local", "submit", "drive"])
def test_make_hands_the_switch_on(target: str) -> None:
    def shown(more: str) -> str:
        command = ["make", "-n", *target.split(), *more.split(), "CLUSTER=x"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--no-reuse" in shown("REUSE=0")
    assert "--no-reuse" not in shown("")
