"""FedKD as a whole on tiny federations: who learns what, in which order, at how many bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lada.answering
import lada.imitation
from lada.config import SERVER
from lada.errors import ConfigError
from lada.generation import generate
from lada.local import train
from lada.plan import read_plan
from lada.records import Response, SampleLog, read_jsonl
from lada.rundir import RunDir, Stage
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]
CLIENTS = ("client-1", "client-2", "client-3")


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    return make_run(
        runs, *SETTINGS, "training.client.batch_size=4", *settings, small=False, method="fedkd", **named
    )


@pytest.fixture(scope="module", params=["1", "3"])
def whole(request: pytest.FixtureRequest, smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("fedkd"), scenario=request.param))


@pytest.fixture(scope="module")
def reference(smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference")))


def texts(run: RunDir, sender: str, recipient: str, stage: str) -> dict[str, Response]:
    path = run.root / "exchange" / sender / recipient / stage / "responses.jsonl"
    return {record.id: record for record in read_jsonl(Response, path)}


def model_bytes(run: RunDir, number: int, step: str, name: str) -> bytes:
    return (commit(run, number, step, name) / "state" / "model.safetensors").read_bytes()


def test_every_party_answers_the_whole_public_set_and_is_measured(whole: RunDir) -> None:
    found = metrics(whole)
    for number in (1, 2):
        for name in (SERVER, *CLIENTS):
            sent = texts(whole, name, "all" if name == SERVER else SERVER, f"r0{number}-respond")
            assert len(sent) + found[number, name, "responses_dropped"] == 16
            assert 0 <= found[number, name, "accuracy"] <= 1
            assert found[number, name, "optimiser_steps"] > 0


def test_both_sides_learn_every_text_of_the_other(whole: RunDir) -> None:
    for number in (1, 2):
        stage = f"r0{number}-respond"
        sent = {name: texts(whole, name, SERVER, stage) for name in CLIENTS}
        logs = read_jsonl(SampleLog, commit(whole, number, "learn", SERVER) / "samples.jsonl")
        assert {(log.partner, log.id) for log in logs} == {(k, i) for k, mine in sent.items() for i in mine}
        for name in CLIENTS:
            logs = read_jsonl(SampleLog, commit(whole, number, "learn", name) / "samples.jsonl")
            assert {log.id for log in logs} == set(texts(whole, SERVER, "all", stage))
            assert {log.partner for log in logs} == {SERVER}


def test_models_change_in_every_round(whole: RunDir) -> None:
    for name in (SERVER, *CLIENTS):
        assert model_bytes(whole, 1, "learn", name) != model_bytes(whole, 2, "learn", name)


def test_bytes_are_the_formula_s(whole: RunDir) -> None:
    """Baselines, section 10: n * (b + 4) up per client, and down per client (broadcast-once: down once)."""
    found = metrics(whole)
    for number in (1, 2):
        for name in (SERVER, *CLIENTS):
            recipient = "all" if name == SERVER else SERVER
            sent = texts(whole, name, recipient, f"r0{number}-respond")
            n = len(sent)
            mean = sum(len(text.text.encode()) for text in sent.values()) / n
            folder = whole.root / "exchange" / name / recipient / f"r0{number}-respond"
            content = sum(len(json.loads(line)["text"].encode()) + 4 for line in lines(folder))
            assert content == pytest.approx(n * (mean + 4))
            metered = found[number, name, f"bytes_sent/respond/{recipient}/responses"]
            assert metered == (folder / "responses.jsonl").stat().st_size > content
    kinds = {key[2].rsplit("/", 1)[1] for key in found if key[2].startswith("bytes_sent/")}
    assert kinds == {"responses", "adapters"}


def lines(folder: Path) -> list[str]:
    return (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()


def test_one_way_the_server_answers_and_sends_once_and_stays_as_it_came(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.server_update=none", scenario="1"))
    found = metrics(run)
    assert [stage.name for group in read_plan(run).groups() for stage in group if stage.party == SERVER] == [
        "r00-prepare",
        "r00-answer",
    ]
    assert not [key for key in found if key[1] in CLIENTS and key[2].endswith("/responses")]
    assert [key[0] for key in found if key[2] == "bytes_sent/answer/all/responses"] == [0]
    sent = texts(run, SERVER, "all", "r00-answer")
    for number in (1, 2):
        for name in CLIENTS:
            assert found[number, name, "trained_samples"] == len(sent)


def test_sequential_the_server_answers_with_what_it_has_just_learnt(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.schedule=sequential"))
    names = [group[0].name for group in read_plan(run).groups() if group[0].round == 1]
    assert names == ["r01-respond", "r01-teach", "r01-answer", "r01-learn"]
    server = party(run, SERVER, "r01-answer")
    model = server.open_model()
    taught = party(run, SERVER, "r01-teach").open_model().state()
    assert any((value != taught[key]).any() for key, value in model.state().items())
    prompts = [server.prompt(question) for question in server.public.values()]
    again = generate(model, prompts, server.config.generation, seed=server.seed("answers"))
    finished = {name: one.text for name, one in zip(server.public, again, strict=True) if one.finished}
    sent = texts(run, SERVER, "all", "r01-answer")
    assert {name: text.text for name, text in sent.items()} == finished
    inputs = json.loads((commit(run, 1, "learn", "client-1") / "manifest.json").read_text())["inputs"]
    assert list(inputs) == ["server/all/r01-answer"]


@pytest.mark.parametrize("shots", [0, 1])
def test_texts_are_learnt_under_the_very_prompt_that_gave_them(
    shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[int, ...]] = set()
    learnt: set[tuple[int, ...]] = set()

    def watched_generate(model: Any, prompts: Any, *rest: Any, **named: Any) -> Any:
        asked.update(tuple(model.prompt_ids(prompt)) for prompt in prompts)
        return generate(model, prompts, *rest, **named)

    def watched_train(owner: Any, model: Any, examples: Any, *rest: Any, **named: Any) -> Any:
        learnt.update(example.prompt for example in examples)
        return train(owner, model, examples, *rest, **named)

    monkeypatch.setattr(lada.answering, "generate", watched_generate)
    monkeypatch.setattr(lada.imitation, "train", watched_train)
    drive(make(tmp_path, f"shots={shots}", "rounds=1"))
    assert len(asked) == 16 and learnt and learnt <= asked


def test_the_same_run_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    assert drive(make(tmp_path)).metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def values(run: RunDir) -> dict[tuple[int, str, str], float]:
    names = ("train_loss", "grad_norm", "trained_samples", "responses")
    return {key: value for key, value in metrics(run).items() if key[2].startswith(names)}


@pytest.mark.parametrize(
    "switch",
    [
        "method.server_update=none",
        "method.schedule=sequential",
        "method.drop_unparsed=true",
        "training.client.decay=0.1",
        "training.server.learning_rate=1e-3",
        "lora.rank=4",
    ],
)
def test_every_switch_changes_a_number(switch: str, reference: RunDir, tmp_path: Path) -> None:
    found = values(drive(make(tmp_path, switch)))
    before = values(reference)
    assert any(found[key] != before[key] for key in found.keys() & before.keys() if key[0] > 0)


def test_without_unparsed_texts_only_texts_with_a_letter_are_learnt(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.drop_unparsed=true", "rounds=1"))
    logs = read_jsonl(SampleLog, commit(run, 1, "learn", "client-1") / "samples.jsonl")
    assert all(log.chosen is not None for log in logs)
    assert len(logs) < len(texts(run, SERVER, "all", "r01-respond"))


def test_an_order_without_a_second_learner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sequential needs server_update"):
        make(tmp_path, "method.server_update=none", "method.schedule=sequential")


def test_a_paused_stage_commits_the_same_bytes(
    reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(1, "learn", "client-1")
    check_same_bytes(reference, stage, tmp_path, monkeypatch, every=3, inside={"fit", "generate"})
