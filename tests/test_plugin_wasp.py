"""LaDa as a guest of WASP: questions that the server's model wrote are its distillation set."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lada.config import SERVER
from lada.errors import ConfigError
from lada.methods import wasp
from lada.plan import read_plan
from lada.prompts import solution
from lada.records import Response, SampleId, SampleLog, read_jsonl
from lada.rundir import RunDir, Stage
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS
from tests.test_privacy import found_outside, plant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("writing_lab")]
CLIENTS = ("client-1", "client-2", "client-3")
HOSTED = ("method.plugin=lada", "method.steps=2", "method.per_step=8")
SHORT = ("method.plugin=lada", "method.steps=1", "method.per_step=10", "rounds=1")
ALL = ("method.lada.select.min_frac=1.0", "method.lada.cold.share=1.0")
"""Everything is selected: the smallest clients end few texts, and some should be pairs."""


def make(runs: Path, *settings: str, scenario: str = "one-client", method: str = "wasp") -> RunDir:
    some = (*SETTINGS, "training.client.batch_size=2", *settings)
    return make_run(runs, *some, small=False, method=method, scenario=scenario)


@pytest.fixture(scope="module")
def whole(writing_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("whole"), *HOSTED, scenario="1"))


@pytest.fixture(scope="module")
def reference(writing_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference"), *SHORT, *ALL))


def names(run: RunDir) -> list[str]:
    return [group[0].name for group in read_plan(run).groups()]


def published(run: RunDir, sender: str) -> dict[str, set[str]]:
    """File name -> recipients, of all that a party published."""
    found: dict[str, set[str]] = {}
    for path in (run.root / "exchange" / sender).rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            found.setdefault(path.name, set()).add(path.parts[-3])
    return found


def logs(run: RunDir, number: int, name: str) -> list[SampleLog]:
    return read_jsonl(SampleLog, commit(run, number, "learn", name) / "samples.jsonl")


def test_the_steps_are_wasps_with_the_selection_between_writing_and_learning(whole: RunDir) -> None:
    every = ("vote", "write", "select", "respond", "learn")
    assert names(whole) == [
        *("r00-prepare", "r00-write_0", "r00-vote_1", "r00-write_1"),
        *(f"r01-{step}" for step in every),
        *(f"r02-{step}" for step in every),
    ]
    roles = {step.name: step.roles for step in read_plan(whole).steps}
    assert roles["select"] == ("server", "client") and roles["respond"] == ("client",)


def test_what_is_selected_is_synthetic_and_there_when_it_is_selected(whole: RunDir) -> None:
    for number in (1, 2):
        known = set(party(whole, "client-1", f"r0{number}-select").synthetic)
        assert known
        for client in CLIENTS:
            path = whole.root / "exchange" / SERVER / client / f"r0{number}-select" / "ids.jsonl"
            asked = {record.id for record in read_jsonl(SampleId, path)}
            assert asked and asked <= known
            assert metrics(whole)[number, client, "selected/server"] > 0
        for name in (SERVER, *CLIENTS):
            assert {log.id for log in logs(whole, number, name)} <= known
    newest = set(party(whole, SERVER, "r02-learn").synthetic) - set(
        party(whole, SERVER, "r01-learn").synthetic
    )
    assert newest & set(wasp.allocations_of(party(whole, SERVER, "r02-learn"))["client-1"].ids)


def test_prototypes_choose_first_and_the_filter_afterwards(whole: RunDir) -> None:
    for number, by in ((1, "prototypes"), (2, "filter")):
        chosen_by = {log.selected_by for name in (SERVER, *CLIENTS) for log in logs(whole, number, name)}
        assert chosen_by == {by}


def test_only_votes_texts_rewards_and_adapters_leave_a_client_and_no_text_the_server(whole: RunDir) -> None:
    """Section 10: up votes and texts on what the server asks for, no ids; down new questions and ids."""
    for client in CLIENTS:
        assert published(whole, client) == {
            name: {SERVER}
            for name in ("votes.safetensors", "responses.jsonl", "rewards.jsonl", "adapter.safetensors")
        }
        for number in (1, 2):
            folder = whole.root / "exchange" / client / SERVER / f"r0{number}-respond"
            sent = {record.id for record in read_jsonl(Response, folder / "responses.jsonl")}
            ids = whole.root / "exchange" / SERVER / client / f"r0{number}-select" / "ids.jsonl"
            assert sent <= {record.id for record in read_jsonl(SampleId, ids)}
    down = published(whole, SERVER)
    assert set(down) == {"questions.jsonl", "ids.jsonl", "rewards.jsonl", "adapter.safetensors"}
    assert down["ids.jsonl"] == set(CLIENTS)
    files = [path for path in (whole.root / "exchange").rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert sum(value for key, value in metrics(whole).items() if "bytes_sent/" in key[2]) == on_disk > 0


def test_the_servers_texts_are_the_solutions_that_came_with_the_questions(whole: RunDir) -> None:
    one = party(whole, "client-1", "r02-learn")
    stated = wasp.solutions(one)
    assert {name: text.text for name, text in stated.items()} == {
        name: solution(question.item()) for name, question in one.synthetic.items()
    }
    pairs = 0
    for number in (1, 2):
        for client in CLIENTS:
            for log in logs(whole, number, client):
                assert log.chosen == one.synthetic[log.id].answer
                pairs += 1
        for log in logs(whole, number, SERVER):
            assert log.rejected == one.synthetic[log.id].answer
            pairs += 1
    assert pairs > 0


def test_nobody_knows_whether_a_synthetic_text_is_right(whole: RunDir) -> None:
    found = {key[2].rsplit("/", 1)[1] for key in metrics(whole) if key[2].startswith("filter/")}
    assert "pairs" in found and "letters_agree" in found
    assert not {"chosen_right", "coverage", "auc_reward", "auc_score", "auc_likelihood"} & found


def test_votes_still_choose_what_requests_show(whole: RunDir) -> None:
    server = party(whole, SERVER, "r02-write")
    known, (near, _) = wasp.synthetic(server), wasp.received_votes(server)
    assert near.sum() > 0
    bad, good = wasp.examples(server, known, [])(random.Random(0))
    rank = {known[place].question: value for place, value in enumerate(near)}
    least = sorted(near, reverse=True)[min(8, len(near) // 2) - 1]
    assert good and all(rank[one.question] >= least for one in good)
    assert not {one.question for one in good} & {one.question for one in bad} and bad


def test_the_same_run_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    assert drive(make(tmp_path, *SHORT, *ALL)).metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_wasp_with_lada_is_neither_wasp_nor_lada(reference: RunDir, tmp_path: Path) -> None:
    alone = drive(make(tmp_path, *SHORT[1:]))
    lada = drive(make(tmp_path, "rounds=1", method="lada"))
    for name in (SERVER, "client-1"):
        models = {
            (commit(run, 1, "learn", name) / "state" / "model.safetensors").read_bytes()
            for run in (reference, alone, lada)
        }
        assert len(models) == 3
    questions = [
        (run.root / "exchange" / SERVER / "all" / "r01-write" / "questions.jsonl").read_bytes()
        for run in (reference, alone)
    ]
    assert questions[0] == questions[1], "until anyone learns the host is what it is alone"


@pytest.mark.parametrize(
    "switch",
    [
        "method.lada.reasoning_distillation=false",
        "method.lada.beta=0.5",
        "method.lada.select.mode=random",
        "method.boosting=false",
    ],
)
def test_every_switch_changes_a_number(switch: str, reference: RunDir, tmp_path: Path) -> None:
    values = [
        (commit(run, 1, "learn", "client-1") / "state" / "model.safetensors").read_bytes()
        for run in (reference, drive(make(tmp_path, *SHORT, *ALL, switch)))
    ]
    assert values[0] != values[1]


def test_without_filter_all_questions_are_selected(tmp_path: Path) -> None:
    few = drive(make(tmp_path, *SHORT, "method.lada.cold.clusters=2"))
    every = drive(make(tmp_path, *SHORT, "method.lada.cold.clusters=2", "method.lada.use_filter=false"))
    number = len(party(every, SERVER, "r01-select").synthetic)
    for name, partner in ((SERVER, "client-1"), ("client-1", SERVER)):
        assert metrics(every)[1, name, f"selected/{partner}"] == number
        assert metrics(few)[1, name, f"selected/{partner}"] < number


def test_boosted_weights_of_the_host_multiply_the_guests_loss(reference: RunDir) -> None:
    found = metrics(reference)
    assert found[1, "client-1", "trained_samples"] > 0
    assert found[1, "client-1", "weight_least"] < 1 < found[1, "client-1", "weight_greatest"]
    assert (1, SERVER, "weight_least") not in found


def test_a_server_that_cannot_write_leaves_nothing_to_select(
    smallest_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_LAB_WEIGHTS", str(smallest_models))
    run = drive(make(tmp_path, "method.plugin=lada", "method.steps=1", "method.per_step=3"))
    found = metrics(run)
    for name in (SERVER, "client-1"):
        assert found[2, name, "trained_samples"] == 0
        assert found[2, name, "accuracy"] == found[0, name, "accuracy"]


def test_its_selections_mean_nothing_to_another_run(reference: RunDir, tmp_path: Path) -> None:
    again = ("rounds=1", "method.select.mode=random", f"method.select.replay={reference.root}")
    with pytest.raises(ConfigError, match="questions that its own server wrote"):
        make(tmp_path, *again, method="lada")


def test_canaries_of_every_private_shard_stay_inside(tmp_path: Path) -> None:
    run = make(tmp_path, *SHORT, "exchange.publish_adapters=false")
    canaries = plant(run)
    drive(run)
    assert party(run, "client-1", "r01-learn").synthetic and found_outside(run, canaries) == []


def test_answers_of_the_public_set_are_never_read(reference: RunDir, tmp_path: Path) -> None:
    run = make(tmp_path, *SHORT, *ALL)
    lines = [json.loads(line) for line in run.sealed.read_text().splitlines()]
    for line in lines:
        line["answer"] = "ABCD"[("ABCD".index(line["answer"]) + 1) % 4]
    run.sealed.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    assert drive(run).metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (Stage(1, "select", "client-1"), 2, {"prompt_features"}),
        (Stage(1, "learn", "client-1"), 11, {"fit", "generate"}),
    ],
    ids=["select", "learn"],
)
def test_a_paused_stage_commits_the_same_bytes(
    stage: Stage,
    every: int,
    inside: set[str],
    reference: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In ``learn`` host and guest both change during training: weights and rewards go on where they were."""
    check_same_bytes(reference, stage, tmp_path, monkeypatch, every=every, inside=inside)
