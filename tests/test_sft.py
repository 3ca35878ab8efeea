"""SFT as a whole on tiny federations: on all questions, and on the ids of a LaDa run, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada.config import SERVER
from lada.errors import ConfigError
from lada.records import Replayed, Response, SampleId, SampleLog, read_jsonl
from lada.rundir import RunDir
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]
CLIENTS = ("client-1", "client-2", "client-3")


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    named = {"method": "sft", **named}
    return make_run(runs, *SETTINGS, "training.client.batch_size=4", *settings, small=False, **named)


@pytest.fixture(scope="module")
def runs(smallest_lab: Path, tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def chosen(runs: Path) -> RunDir:
    """A LaDa run whose filters select another number of samples in each round."""
    few = ("method.select.threshold=0.5001", "method.cold.clusters=4")
    return drive(make(runs, *few, "rounds=3", method="lada", scenario="1"))


@pytest.fixture(scope="module")
def replayed(runs: Path, chosen: RunDir) -> RunDir:
    return drive(make(runs, *replay(chosen), "rounds=3", scenario="1"))


@pytest.fixture(scope="module", params=["1", "3"])
def whole(request: pytest.FixtureRequest, runs: Path) -> RunDir:
    return drive(make(runs, scenario=request.param))


def replay(run: RunDir) -> tuple[str, str]:
    return "method.selection=lada", f"method.replay={run.root.name}"


def ids(run: RunDir, sender: str, recipient: str, stage: str) -> set[str]:
    path = run.root / "exchange" / sender / recipient / stage / "ids.jsonl"
    return {record.id for record in read_jsonl(SampleId, path)}


def texts(run: RunDir, recipient: str, stage: str) -> dict[str, str]:
    path = run.root / "exchange" / SERVER / recipient / stage / "responses.jsonl"
    return {record.id: record.text for record in read_jsonl(Response, path)}


def trained(run: RunDir, number: int, name: str) -> set[str]:
    logs = read_jsonl(SampleLog, commit(run, number, "learn", name) / "samples.jsonl")
    return {log.id for log in logs}


def lada_ids(run: RunDir, number: int, name: str) -> set[str]:
    """What a client of the LaDa run asked for, for a round."""
    return ids(run, name, SERVER, "r00-prepare" if number == 1 else f"r{number - 1:02d}-learn")


def test_by_default_every_text_is_sent_once_and_learnt_in_every_round(whole: RunDir) -> None:
    found, sent = metrics(whole), texts(whole, "all", "r00-answer")
    assert len(sent) + found[0, SERVER, "responses_dropped/answer"] == 16
    for number in (1, 2):
        for name in CLIENTS:
            assert trained(whole, number, name) == set(sent)
            assert found[number, name, "selected/server"] == 16
            assert 0 <= found[number, name, "accuracy"] <= 1
    kinds = {key[2] for key in found if "bytes_sent/" in key[2]}
    assert kinds == {"bytes_sent/answer/all/responses", "bytes_sent/learn/server/adapters"}


def test_the_server_is_never_trained(whole: RunDir, replayed: RunDir) -> None:
    for run in (whole, replayed):
        assert not list((run.root / "parties" / SERVER).rglob("model.safetensors"))


def test_the_very_ids_of_the_lada_run_are_learnt_in_the_very_rounds(chosen: RunDir, replayed: RunDir) -> None:
    sizes = set()
    for name in CLIENTS:
        received: dict[str, str] = {}
        for number in (1, 2, 3):
            wanted = lada_ids(chosen, number, name)
            received |= texts(replayed, name, f"r{number:02d}-respond")
            assert trained(replayed, number, name) == wanted & received.keys()
            assert len(wanted) == metrics(replayed)[number, name, "selected/server"]
            dropped = sum(metrics(replayed)[n, SERVER, "responses_dropped"] for n in range(1, number + 1))
            assert len(wanted - received.keys()) <= dropped
            sizes.add(len(wanted))
    assert len(sizes) > 1


def test_every_party_is_given_its_own_part_of_the_other_run(chosen: RunDir, replayed: RunDir) -> None:
    for name in CLIENTS:
        given = read_jsonl(Replayed, replayed.data(name, "replay"))
        assert {one.partner for one in given} == {SERVER}
        for number in (1, 2, 3):
            assert {one.id for one in given if one.round == number} == lada_ids(chosen, number, name)
    given = read_jsonl(Replayed, replayed.data(SERVER, "replay"))
    assert {one.partner for one in given} == set(CLIENTS)


def test_a_text_is_asked_for_generated_and_sent_once(replayed: RunDir) -> None:
    said: dict[str, str] = {}
    for name in CLIENTS:
        asked: set[str] = set()
        for number, before in ((1, "r00-prepare"), (2, "r01-learn"), (3, "r02-learn")):
            new = ids(replayed, name, SERVER, before)
            sent = texts(replayed, name, f"r{number:02d}-respond")
            assert not new & asked and sent.keys() <= new
            for sample, text in sent.items():
                assert said.setdefault(sample, text) == text
            asked |= new


def test_bytes_are_the_formula_s(replayed: RunDir) -> None:
    """Baselines, section 10: up 4 bytes an id, down (b + 4) bytes a text, on what was not sent before."""
    found = metrics(replayed)
    for name in CLIENTS:
        for number, before in ((1, "r00-prepare"), (2, "r01-learn"), (3, "r02-learn")):
            sent = texts(replayed, name, f"r{number:02d}-respond")
            folder = replayed.root / "exchange" / SERVER / name / f"r{number:02d}-respond"
            content = sum(len(text.encode()) + 4 for text in sent.values())
            down = found[number, SERVER, f"bytes_sent/respond/{name}/responses"]
            assert down == (folder / "responses.jsonl").stat().st_size >= content
            step = before.split("-")[1]
            up = found.get((number - 1, name, f"bytes_sent/{step}/server/ids"), 0.0)
            assert up >= 4 * len(ids(replayed, name, SERVER, before))


def test_the_same_run_twice_gives_the_same_bytes(chosen: RunDir, replayed: RunDir, tmp_path: Path) -> None:
    setting = ("method.selection=lada", f"method.replay={chosen.root}")
    again = drive(make(tmp_path, *setting, "rounds=3", scenario="1"))
    assert lines(again) == lines(replayed)


def lines(run: RunDir) -> list[str]:
    """metrics.csv without the run id, in which the other run's path counts."""
    return [line.split(",", 1)[1] for line in run.metrics_csv.read_text().splitlines()]


def test_the_selection_changes_numbers(chosen: RunDir, replayed: RunDir, runs: Path) -> None:
    one, other = metrics(drive(make(runs, "rounds=3", scenario="1"))), metrics(replayed)
    for name in CLIENTS:
        assert one[1, name, "train_loss"] != other[1, name, "train_loss"]
        assert one[1, name, "trained_samples"] > other[1, name, "trained_samples"] > 0


def test_on_all_questions_it_is_one_way_fedkd(runs: Path) -> None:
    sft = drive(make(runs))
    fedkd = drive(make(runs, "method.server_update=none", method="fedkd"))
    for number in (1, 2):
        one, other = (commit(run, number, "learn", "client-1") / "state" for run in (sft, fedkd))
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("setting", ["method.selection=lada", "method.replay=somewhere"])
def test_ids_without_a_run_and_a_run_without_a_use_are_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="selection lada needs replay"):
        make(tmp_path, setting)
