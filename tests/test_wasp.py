"""WASP on tiny federations: the server writes with a real lab model, the clients are the smallest models."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from lada.config import SERVER
from lada.driver import Driver
from lada.embedding import question_text, tfidf_embedder
from lada.errors import ConfigError, StageError
from lada.incoming import published_questions
from lada.manifest import Outbox
from lada.methods import wasp
from lada.party import MODEL_FILE
from lada.plan import read_plan
from lada.provenance import run_hashes
from lada.records import Item, Question, Response, read_jsonl
from lada.rundir import RunDir, Stage
from lada.stage import InProcess
from lada.synthetic import Synthetic, synthetic_id
from lada.voting import noise_sigma
from tests.federation import Quiet, commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS
from tests.test_privacy import found_outside, plant
from tests.test_voting import slow_votes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("writing_lab")]

CLIENTS = ("client-1", "client-2", "client-3")
SMALL = ("method.steps=2", "method.per_step=8")
SHORT = ("method.steps=1", "method.per_step=10", "rounds=1")


def make(runs: Path, *settings: str, scenario: str = "one-client") -> RunDir:
    some = ("training.client.batch_size=4", *SETTINGS, *settings)
    return make_run(runs, *some, small=False, method="wasp", scenario=scenario)


@pytest.fixture(scope="module", params=["1", "3"])
def whole(
    request: pytest.FixtureRequest, writing_lab: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("wasp"), *SMALL, scenario=request.param))


@pytest.fixture(scope="module")
def reference(writing_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference"), *SHORT))


def questions(run: RunDir, *stages: str) -> list[Synthetic]:
    return published_questions(
        run,
        stages or [name for name in names(run) if "write" in name],
        limits=Driver(run, InProcess(run, lambda *_: Quiet())).config.exchange,
        run_hashes=run_hashes(run),
    )


def names(run: RunDir) -> list[str]:
    return [group[0].name for group in read_plan(run).groups()]


def histograms(run: RunDir, client: str, stage: str) -> dict[str, NDArray[np.float32]]:
    path = run.root / "exchange" / client / SERVER / stage / "votes.safetensors"
    return load(path.read_bytes())


# -- a whole run


def test_the_steps_of_a_run_are_those_of_the_page(whole: RunDir) -> None:
    assert names(whole) == [
        *("r00-prepare", "r00-write_0", "r00-vote_1", "r00-write_1"),
        *("r01-vote", "r01-write", "r01-learn", "r02-vote", "r02-write", "r02-learn"),
    ]


def test_with_one_step_only_the_first_questions_are_written_before_round_1(reference: RunDir) -> None:
    assert names(reference) == ["r00-prepare", "r00-write_0", "r01-vote", "r01-write", "r01-learn"]


def test_every_party_is_measured_every_round_and_clients_learn_all_questions(whole: RunDir) -> None:
    found = metrics(whole)
    assert (0, "client-1", "accuracy_base") in found
    for number in (1, 2):
        known = len(questions(whole, *[name for name in names(whole) if name <= f"r0{number}-write"]))
        for name in (SERVER, *CLIENTS):
            assert 0 <= found[number, name, "accuracy"] <= 1
        for name in CLIENTS:
            assert found[number, name, "trained_samples"] == known
            assert 0 < found[number, name, "weight_least"] <= 1 <= found[number, name, "weight_greatest"]
        assert found[number, SERVER, "trained_samples"] == math.floor(known / 2 + 0.5)


def test_the_set_grows_by_what_was_accepted_and_the_rates_are_logged(whole: RunDir) -> None:
    found = metrics(whole)
    total = 0.0
    for number, step in ((0, "write_0"), (0, "write_1"), (1, "write"), (2, "write")):
        counts = {
            reason: found[number, SERVER, f"questions_{reason}/{step}"]
            for reason in ("accepted", "unfinished", "malformed", "inconsistent", "disagreed", "duplicate")
        }
        assert sum(counts.values()) == found[number, SERVER, f"questions_asked/{step}"] <= 3 * 8
        assert 0 < counts["accepted"] <= 8
        total += counts["accepted"]
        assert found[number, SERVER, f"questions/{step}"] == total
    assert total == len(questions(whole))


def test_questions_are_new_whole_and_balanced(whole: RunDir) -> None:
    found = questions(whole)
    assert [one.id for one in found] == [synthetic_id(place) for place in range(len(found))]
    counts = Counter(one.answer for one in found)
    assert max(counts.values()) - min(counts.values()) <= 1
    public = {question.question for question in whole.public_questions()}
    assert not public & {one.question for one in found}
    for one in found:
        assert one.rationale.endswith(f"= {one.options['ABCD'.index(one.answer)]} {one.answer}.")


def test_votes_equal_those_of_an_obvious_implementation(whole: RunDir) -> None:
    """From the run's own files: every private question, every published one, no code of the method."""
    embed = tfidf_embedder([question_text(question) for question in whole.public_questions()])
    for stage in ("r00-vote_1", "r02-vote"):
        others = embed([question_text(one.item()) for one in questions(whole, *written_before(whole, stage))])
        for client in CLIENTS:
            private = embed([question_text(item) for item in read_jsonl(Item, whole.data(client, "train"))])
            distances = [
                [
                    round(1 - sum(float(a) * float(b) for a, b in zip(own, other, strict=True)), 9)
                    for other in others
                ]
                for own in private
            ]
            near, far = slow_votes(distances, 8)
            sent = histograms(whole, client, stage)
            assert sent["near"].tolist() == near and sent["far"].tolist() == far


def written_before(run: RunDir, stage: str) -> list[str]:
    earlier = names(run)[: names(run).index(stage)]
    return [name for name in earlier if "write" in name]


def test_metered_bytes_are_the_formula_of_the_page(whole: RunDir) -> None:
    """Oracle 10 and section 10: new items down once a step, 8 bytes a question up, and the files' heads."""
    files = [path for path in (whole.root / "exchange").rglob("*") if path.is_file()]
    metered = {key: value for key, value in metrics(whole).items() if "bytes_sent/" in key[2]}
    on_disk = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert sum(metered.values()) == on_disk > 0
    for client in CLIENTS:
        for stage in ("r00-vote_1", "r01-vote", "r02-vote"):
            count = len(questions(whole, *written_before(whole, stage)))
            sent = metered[int(stage[1:3]), client, f"bytes_sent/{stage[4:]}/server/votes"]
            assert 0 < sent - 8 * count <= 160
    items = [value for key, value in metered.items() if key[2].endswith("/all/questions")]
    content = sum(
        len((one.question + one.rationale + "".join(one.options)).encode()) + 4 for one in questions(whole)
    )
    assert 0 < sum(items) - content <= 120 * len(questions(whole))


def test_nothing_but_votes_and_adapters_leaves_a_client(whole: RunDir) -> None:
    sent = {
        path.relative_to(whole.root / "exchange").as_posix()
        for client in CLIENTS
        for path in (whole.root / "exchange" / client).rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert {path.split("/")[-1] for path in sent} == {"votes.safetensors", "adapter.safetensors"}
    assert {path.split("/")[1] for path in sent} == {SERVER}


def test_requests_show_what_was_voted_for_and_against(whole: RunDir) -> None:
    server = party(whole, SERVER, "r02-write")
    known = wasp.synthetic(server)
    near, far = wasp.received_votes(server)
    sums = {
        side: sum(histograms(whole, one, "r02-vote")[side] for one in CLIENTS) for side in ("near", "far")
    }
    assert near.tolist() == sums["near"].tolist() and far.tolist() == sums["far"].tolist()
    draw = wasp.examples(server, known, [])
    bad, good = draw(random.Random(0))
    rank = {known[place].question: value for place, value in enumerate(near)}
    least = sorted(near, reverse=True)[min(8, len(near) // 2) - 1]
    assert len(good) == 4 and all(rank[one.question] >= least for one in good)
    assert not {one.question for one in good} & {one.question for one in bad} and bad


# -- the same again


def test_the_same_run_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    again = drive(make(tmp_path, *SHORT))
    assert again.metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()
    assert questions(again) == questions(reference)


def test_a_run_that_was_stopped_and_lost_a_commit_ends_with_the_same_bytes(
    reference: RunDir, tmp_path: Path
) -> None:
    """Legal ids are found again by a driver that starts anew, and after questions had to be written again."""
    run = make(tmp_path, *SHORT)
    Driver(run, InProcess(run, lambda *_: Quiet())).drive(rounds=0)
    shutil.rmtree(commit(run, 0, "write_0", SERVER) / "public")
    drive(run)
    assert len(list(run.rejected(SERVER).glob("r00-write_0.*"))) == 1
    assert run.metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_another_seed_writes_other_questions(reference: RunDir, tmp_path: Path) -> None:
    other = drive(make(tmp_path, *SHORT, "seed=1"))
    assert {one.question for one in questions(other)} != {one.question for one in questions(reference)}


# -- switches: one stage of a finished run again, with another option


@pytest.fixture(scope="module")
def steady(writing_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("steady"), *SMALL))


def again(run: RunDir, name: str, stage: str, **options: object) -> Outbox:
    one = party(run, name, stage)
    assert isinstance(one.options, wasp.Config)
    one.options = one.options.model_copy(update=options)
    step = stage.split("-")[1].split("_")[0]
    if step == "learn":
        return wasp.learn_server(one) if name == SERVER else wasp.learn_client(one)
    return {"write": wasp.write, "vote": wasp.vote}[step](one)


def published(outbox: Outbox) -> dict[str, bytes]:
    return {name: payload.data for files in outbox.public.values() for name, payload in files.items()}


def on_disk(run: RunDir, name: str, stage: str) -> dict[str, bytes]:
    files = commit_of(run, name, stage).glob("public/*/*")
    return {path.name: path.read_bytes() for path in files if path.name != "manifest.json"}


def commit_of(run: RunDir, name: str, stage: str) -> Path:
    return commit(run, int(stage[1:3]), stage[4:], name)


SWITCHES = [
    (SERVER, "r00-write_0", {"first_examples": "demo"}),
    (SERVER, "r00-write_1", {"per_step": 5}),
    (SERVER, "r00-write_1", {"max_size": 8}),
    (SERVER, "r02-write", {"examples": 2}),
    (SERVER, "r00-write_1", {"asks": 1}),
    (SERVER, "r00-write_1", {"temperature": 1.5}),
    (SERVER, "r00-write_1", {"top_p": 0.3}),
    (SERVER, "r00-write_1", {"max_new_tokens": 45}),
    (SERVER, "r00-write_1", {"duplicate": 0.2}),
    ("client-1", "r01-vote", {"depth": 1}),
    ("client-1", "r01-vote", {"embedder": "hidden"}),
    ("client-1", "r01-vote", {"noise": "reproducible"}),
    ("client-1", "r01-learn", {"boosting": False}),
    (SERVER, "r01-learn", {"top_share": 0.9}),
]


@pytest.mark.parametrize("name, stage, options", SWITCHES, ids=str)
def test_every_switch_changes_what_a_stage_leaves(
    name: str, stage: str, options: dict[str, object], steady: RunDir
) -> None:
    assert published(again(steady, name, stage)) == on_disk(steady, name, stage), "the stage is repeatable"
    assert published(again(steady, name, stage, **options)) != on_disk(steady, name, stage)


def test_the_model_of_the_hidden_embedder_changes_votes(steady: RunDir) -> None:
    models = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B")
    found = [
        published(again(steady, "client-1", "r01-vote", embedder="hidden", embedder_model=model))
        for model in models
    ]
    assert found[0] != found[1]


def test_an_unchanged_server_is_measured_again_and_keeps_no_model(steady: RunDir) -> None:
    outbox = again(steady, SERVER, "r01-learn", server_update="none")
    assert MODEL_FILE not in outbox.private and not outbox.public
    found = json.loads(outbox.private["metrics.json"].data)
    assert found["accuracy"] == metrics(steady)[0, SERVER, "accuracy"]


def test_clients_may_answer_synthetic_questions_for_the_server(tmp_path: Path) -> None:
    run = drive(make(tmp_path, *SHORT, "method.server_update=sft_on_slm"))
    path = run.root / "exchange" / "client-1" / SERVER / "r01-respond" / "responses.jsonl"
    texts = read_jsonl(Response, path)
    assert texts and {one.id for one in texts} <= {one.id for one in questions(run)}
    assert metrics(run)[1, SERVER, "trained_samples"] == len(texts)
    assert not run.rejected("client-1").exists()


def test_no_more_questions_than_the_largest_size_are_written(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.steps=1", "method.per_step=8", "method.max_size=2"))
    found = metrics(run)
    assert len(questions(run)) == found[2, SERVER, "questions/write"] == 2
    assert found[2, SERVER, "questions_asked/write"] == 0
    votes = histograms(run, "client-1", "r02-vote")
    assert len(votes["near"]) == 2, "the set that no longer grows is voted on to its end"


def test_a_server_that_cannot_write_leaves_everything_as_it_is(
    smallest_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_LAB_WEIGHTS", str(smallest_models))
    run = drive(make(tmp_path, "method.steps=1", "method.per_step=3"))
    found = metrics(run)
    assert found[2, SERVER, "questions/write"] == found[2, "client-1", "trained_samples"] == 0
    assert found[2, "client-1", "accuracy"] == found[0, "client-1", "accuracy"]
    assert histograms(run, "client-1", "r02-vote")["near"].shape == (0,)


# -- noise


def noisy(run: RunDir, stage: str = "r01-vote", **options: object) -> tuple[dict[str, list[float]], float]:
    outbox = again(run, "client-1", stage, **({"noise": "reproducible"} | options))
    found = {side: values.tolist() for side, values in load(published(outbox)["votes.safetensors"]).items()}
    metric = json.loads(outbox.private["metrics.json"].data)
    return found, metric[f"vote_sigma/{stage[4:]}"]


def test_noise_is_what_the_formula_says_for_all_votes_of_the_run(steady: RunDir) -> None:
    for stage in ("r00-vote_1", "r02-vote"):
        assert noisy(steady, stage)[1] == noise_sigma(8, epsilon=4.0, delta=1e-5, releases=3)
    assert noisy(steady, epsilon=1.0)[1] == noise_sigma(8, epsilon=1.0, delta=1e-5, releases=3)
    assert noisy(steady, delta=1e-3)[1] == noise_sigma(8, epsilon=4.0, delta=1e-3, releases=3)


def test_noise_is_shared_only_where_sums_are_secure(tmp_path: Path) -> None:
    found = []
    for switch in ("method.secure_sum=false", "method.secure_sum=true"):
        run = make(tmp_path, "method.noise=secret", switch, scenario="1")
        found.append(wasp.vote_sigma(party(run, "client-2")))
    assert found[0] == pytest.approx(found[1] * math.sqrt(3))


def test_every_entry_of_both_histograms_has_noise_of_its_own(steady: RunDir) -> None:
    sent, sigma = noisy(steady)
    exact = {side: values.tolist() for side, values in histograms(steady, "client-1", "r01-vote").items()}
    noise = [a - b for side in ("near", "far") for a, b in zip(sent[side], exact[side], strict=True)]
    assert len(set(noise)) == len(noise) > 10
    assert 0.3 * sigma < np.std(noise) < 3 * sigma


def test_noise_that_protects_is_never_drawn_twice(steady: RunDir) -> None:
    """The run's seed is known to the server, so noise from it could be taken off again."""
    assert noisy(steady, noise="secret")[0] != noisy(steady, noise="secret")[0]
    assert noisy(steady)[0] == noisy(steady)[0]


def test_a_noisy_run_goes_through_and_keeps_adapters_at_home(tmp_path: Path) -> None:
    run = drive(make(tmp_path, *SHORT, "method.noise=reproducible", "method.epsilon=0.5"))
    assert histograms(run, "client-1", "r01-vote")["near"].min() < 0
    sent = {path.name for path in (run.root / "exchange" / "client-1").rglob("*") if path.is_file()}
    assert sent == {"votes.safetensors", "manifest.json"}
    assert (commit(run, 1, "learn", "client-1") / "state" / "model.safetensors").is_file()


def test_texts_of_clients_would_undo_the_noise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sft_on_slm"):
        make(tmp_path, "method.noise=secret", "method.server_update=sft_on_slm")


# -- what stays with a party


def test_votes_that_no_client_can_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, *SHORT)
    real = wasp.histograms
    monkeypatch.setattr(wasp, "histograms", lambda *given: tuple(10 * side for side in real(*given)))
    with pytest.raises(StageError, match=r"client-1/r01-vote/votes\.safetensors: check 'votes' failed"):
        drive(run)


def test_canaries_of_every_private_shard_stay_inside(tmp_path: Path) -> None:
    run = make(tmp_path, *SHORT, "method.server_update=sft_on_slm", "exchange.publish_adapters=false")
    canaries = plant(run)
    drive(run)
    assert questions(run) and found_outside(run, canaries) == []


def test_lettered_answers_of_the_public_set_are_never_read(reference: RunDir, tmp_path: Path) -> None:
    """Gold of public questions stays sealed: without it the stages come out the same."""
    run = make(tmp_path, *SHORT)
    lines = [json.loads(line) for line in run.sealed.read_text().splitlines()]
    for line in lines:
        line["answer"] = "ABCD"[("ABCD".index(line["answer"]) + 1) % 4]
    run.sealed.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    assert drive(run).metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_a_question_is_found_by_its_id_wherever_it_came_from(reference: RunDir) -> None:
    client = party(reference, "client-1", "r01-learn")
    one = questions(reference)[0]
    assert client.question(one.id) == Question(id=one.id, question=one.question, options=one.options)
    public = reference.public_questions()[0]
    assert client.question(public.id) == public
    assert list(client.synthetic) == [question.id for question in questions(reference)]


def test_the_defaults_are_those_of_the_page() -> None:
    config = wasp.Config()
    assert (config.steps, config.depth, config.examples) == (4, 8, 8)
    assert (config.temperature, config.top_p, config.max_new_tokens) == (1.0, 0.9, 384)
    assert (config.server_update, config.top_share, config.noise) == ("sft_top_voted", 0.5, "off")
    assert (config.epsilon, config.delta, config.duplicate) == (4.0, 1e-5, 0.95)


# -- pauses


@pytest.fixture(scope="module")
def paused(writing_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Two epochs, so that weights change during training; an embedder that is a model."""
    more = ("training.client.epochs=2", "method.embedder=hidden", "method.duplicate=1.0")
    return drive(make(tmp_path_factory.mktemp("paused"), *SHORT, *more))


@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (Stage(1, "write", SERVER), 60, {"generate"}),
        (Stage(1, "vote", "client-1"), 2, {"prompt_features"}),
        (Stage(1, "learn", "client-1"), 11, {"fit", "generate"}),
    ],
    ids=["write", "vote", "learn"],
)
def test_a_paused_stage_commits_the_same_bytes(
    stage: Stage,
    every: int,
    inside: set[str],
    paused: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(questions(paused, "r00-write_0")) > 2
    lines = check_same_bytes(paused, stage, tmp_path, monkeypatch, every=every, inside=inside)
    judged = [line for line in lines if re.match(r"phase \d+-\d+-1 \(generate\) goes on", line)]
    assert bool(judged) == (stage.step == "learn"), "samples are judged in a phase inside training"
