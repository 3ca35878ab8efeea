"""FedMKT as a whole on tiny federations: order of steps, labels, what is sent, what each switch changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lada.answers import extract_letter
from lada.config import SERVER
from lada.errors import ConfigError, ExchangeError
from lada.labels import majority
from lada.layers import layers
from lada.methods import fedmkt
from lada.plan import read_plan
from lada.records import LETTERS, Letter, Response, parse_jsonl, read_jsonl
from lada.results import read_metrics
from lada.rundir import RunDir, Stage
from lada.runs import resolve_run
from tests import smallest_models as smallest_models_module
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS
from tests.test_privacy import found_outside, plant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]
CLIENTS = ("client-1", "client-2", "client-3")


def lettered() -> Tokenizer:
    """One token a character and one a bracketed letter, so that random answers mostly have a letter."""
    words = [*smallest_models_module.SPECIAL, *smallest_models_module.CHARACTERS, "(A)", "(B)", "(C)", "(D)"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\([A-D]\)|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(smallest_models_module.SPECIAL))
    return tokenizer


@pytest.fixture(scope="module")
def smallest_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of the shared fixture: models that can say a letter."""
    folder = tmp_path_factory.mktemp("lettered-models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallest_models_module, "_tokenizer", lettered)
        smallest_models_module.write_models(folder)
    return folder


def make(runs: Path, *settings: str, scenario: str = "one-client") -> RunDir:
    """A run of the smallest models: about a second."""
    more = ("training.client.batch_size=4", *settings)
    return make_run(runs, *SETTINGS, *more, small=False, method="fedmkt", scenario=scenario)


@pytest.fixture(scope="module")
def letter(smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("letter"), scenario="1"))


@pytest.fixture(scope="module")
def seq(smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("seq"), "method.mode=seq", scenario="3"))


@pytest.fixture(scope="module")
def references(smallest_lab: Path, tmp_path_factory: Any) -> dict[str, RunDir]:
    return {
        mode: drive(make(tmp_path_factory.mktemp(mode), f"method.mode={mode}")) for mode in ("letter", "seq")
    }


def sent(run: RunDir, sender: str, recipient: str, stage: str, name: str) -> bytes:
    return (run.root / "exchange" / sender / recipient / stage / name).read_bytes()


def arrays(run: RunDir, sender: str, stage: str, name: str = fedmkt.KNOWLEDGE) -> dict[str, np.ndarray]:
    return load(sent(run, sender, "all" if sender == SERVER else SERVER, stage, name))


def letters(run: RunDir, sender: str) -> list[Letter | None]:
    stage = "r00-label" if sender == SERVER else "r00-vote"
    coded = arrays(run, sender, stage, fedmkt.VOTES)["letters"]
    return [LETTERS[place] if place < 4 else None for place in coded]


def model_bytes(run: RunDir, number: int, step: str, name: str) -> bytes:
    return (commit(run, number, step, name) / "state" / "model.safetensors").read_bytes()


# -- order of steps


def test_the_order_is_fedmkts(letter: RunDir) -> None:
    """4(a) E: private training and upload, the server learns and sends, the clients learn."""
    steps = [(step.name, step.once, step.roles) for step in read_plan(letter).steps]
    assert steps == [
        ("prepare", True, ("server", "client")),
        ("vote", True, ("client",)),
        ("label", True, ("server",)),
        ("share", False, ("client",)),
        ("teach", False, ("server",)),
        ("learn", False, ("client",)),
    ]


@pytest.mark.parametrize("mode", ["letter", "seq"])
def test_every_party_is_measured_in_every_round(letter: RunDir, seq: RunDir, mode: str) -> None:
    found = metrics(letter if mode == "letter" else seq)
    for number in range(3):
        for name in (SERVER, *CLIENTS):
            assert 0 <= found[number, name, "accuracy"] <= 1
            if number:
                assert found[number, name, "optimiser_steps"] > 0
                assert math.isfinite(found[number, name, "train_loss/text"])


def test_there_is_one_private_training_a_round(letter: RunDir) -> None:
    """Round 1's is `prepare`'s; from round 2 on a client trains on its own questions before it shares."""
    found = metrics(letter)
    for name in CLIENTS:
        assert not (commit(letter, 1, "share", name) / "state" / "model.safetensors").exists()
        assert model_bytes(letter, 2, "share", name) != model_bytes(letter, 1, "learn", name)
        assert found[1, name, "private_steps"] == 0
        assert found[2, name, "private_steps"] == 1  # 8 questions, batches of 16
    assert (
        not (commit(letter, 0, "prepare", SERVER) / "state").exists()
        or not (commit(letter, 0, "prepare", SERVER) / "state" / "model.safetensors").exists()
    )


@pytest.mark.parametrize("mode", ["letter", "seq"])
def test_what_the_server_sent_last_is_its_own_snapshot_in_the_next_round(
    letter: RunDir, seq: RunDir, mode: str
) -> None:
    run = letter if mode == "letter" else seq
    mine = load((commit(run, 1, "teach", SERVER) / "state" / "logits.safetensors").read_bytes())
    public = arrays(run, SERVER, "r01-teach")
    assert all(np.array_equal(mine[name], public[name]) for name in mine)
    found = metrics(run)[2, SERVER, "cross_entropy/server"]
    assert found == pytest.approx(public["ce"].astype(np.float64).mean(), abs=1e-9)
    before = load((commit(run, 0, "label", SERVER) / "state" / "logits.safetensors").read_bytes())
    assert metrics(run)[1, SERVER, "cross_entropy/server"] == pytest.approx(
        before["ce"].astype(np.float64).mean(), abs=1e-9
    )
    assert not np.array_equal(before["ce"], public["ce"])


def test_clients_learn_from_the_server_and_the_server_from_clients(letter: RunDir) -> None:
    found = metrics(letter)
    count = len(arrays(letter, SERVER, "r01-teach")["ce"])
    for number in (1, 2):
        mine = {key[2]: value for key, value in found.items() if key[:2] == (number, SERVER)}
        assert sum(mine[f"selected/{name}"] for name in (SERVER, *CLIENTS)) == count
        for name in CLIENTS:
            theirs = {key[2]: value for key, value in found.items() if key[:2] == (number, name)}
            assert theirs["selected/server"] + theirs[f"selected/{name}"] == count
            assert f"selected/{CLIENTS[(CLIENTS.index(name) + 1) % 3]}" not in theirs


# -- labels


def test_labels_are_the_vote_of_all_models(letter: RunDir) -> None:
    one = party(letter, SERVER, "r01-teach")
    content = (commit(letter, 0, "label", SERVER) / "state" / "own_responses.jsonl").read_text()
    own = {record.id: record for record in parse_jsonl(Response, content, source="own")}
    llm = [
        extract_letter(own[name].text, question.options) if name in own else None
        for name, question in one.public.items()
    ]
    ballots = zip(llm, *(letters(letter, name) for name in CLIENTS), strict=True)
    assert letters(letter, SERVER) == [majority(votes) for votes in ballots]
    assert metrics(letter)[0, SERVER, "labels"] == sum(one is not None for one in letters(letter, SERVER)) > 0


def test_the_llms_letters_need_no_ballots(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.label_source=llm", "rounds=1"))
    assert "vote" not in [step.name for step in read_plan(run).steps]
    assert metrics(run)[0, SERVER, "filter/label/letters_agree"] == 1.0
    assert not list((run.root / "exchange" / "client-1").rglob("letters.safetensors"))


def test_gold_labels_are_an_oracle_by_name_and_nobody_else_sees_them(letter: RunDir, tmp_path: Path) -> None:
    """Not reachable by default, and named so in run id and every row of the results."""
    run = drive(make(tmp_path, "method.label_source=oracle", "rounds=1"))
    assert "fedmkt-oracle" in run.root.name
    assert {row["method"] for row in read_metrics(run.metrics_csv)} == {"fedmkt-oracle"}
    answers = {item.id: item.answer for item in run.sealed_items()}
    assert letters(run, SERVER) == [answers[name] for name in sorted(answers)]
    assert metrics(run)[0, SERVER, "filter/label/chosen_right"] == 1.0
    assert "oracle" not in letter.root.name
    assert not list(letter.root.rglob("answers.jsonl"))
    with pytest.raises(ConfigError, match="must not read public answers"):
        assert party(letter, SERVER, "r01-teach").answers


def test_a_message_about_other_labels_is_refused(letter: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party(letter, SERVER, "r01-teach")
    true = fedmkt.shared_texts(one)
    other = {name: "ABCD"[("ABCD".index(text) + 1) % 4] for name, text in true.items()}
    monkeypatch.setattr(fedmkt, "shared_texts", lambda _: other)
    with pytest.raises(ExchangeError, match=r"client-1/r01-share/logits\.safetensors: check 'labels'"):
        fedmkt.teach(one)


# -- messages


def test_bytes_of_letter_messages_follow_the_formula(letter: RunDir) -> None:
    """Section 10: n * 13 bytes per transfer: four float16 logits, a float32 cross-entropy, a letter."""
    count = sum(one is not None for one in letters(letter, SERVER))
    for number in (1, 2):
        for name, stage in ((SERVER, "teach"), *((name, "share") for name in CLIENTS)):
            message = arrays(letter, name, f"r0{number}-{stage}")
            assert sum(array.nbytes for array in message.values()) == 13 * count
    for name in CLIENTS:
        assert len(letters(letter, name)) == 16


def test_bytes_of_seq_messages_follow_the_formula(seq: RunDir) -> None:
    """Section 10: n * (4 + 6 * K * positions), and the shared texts once."""
    texts = read_jsonl(Response, seq.root / "exchange" / "server" / "all" / "r00-label" / "texts.jsonl")
    # The space before a text, its tokens, and end-of-sequence.
    rows = sum(len(lettered().encode(text.text).ids) + 2 for text in texts)
    for number in (1, 2):
        for name, stage in ((SERVER, "teach"), *((name, "share") for name in CLIENTS)):
            message = arrays(seq, name, f"r0{number}-{stage}")
            assert message["logits"].shape == message["ids"].shape == (rows, 32)
            assert sum(array.nbytes for array in message.values()) == len(texts) * 4 + 6 * 32 * rows
    assert not list(seq.root.glob("exchange/*/*/r0[12]-*/texts.jsonl"))


@pytest.mark.parametrize("mode", ["letter", "seq"])
def test_metered_bytes_are_the_bytes_on_disk(letter: RunDir, seq: RunDir, mode: str) -> None:
    """Oracle 10."""
    run = letter if mode == "letter" else seq
    metered = {key: value for key, value in metrics(run).items() if key[2].startswith("bytes_sent/")}
    files = [path for path in (run.root / "exchange").rglob("*.*") if path.name != "manifest.json"]
    assert sum(metered.values()) == sum(path.stat().st_size for path in files) > 0
    kinds = {"logits", "adapters"} | ({"responses"} if mode == "seq" else set())
    assert {key[2].rsplit("/", 1)[1] for key in metered} == kinds
    broadcast = sum(metered.values())
    unicast = sum(value * (3 if "/all/" in key[2] else 1) for key, value in metered.items())
    assert broadcast <= unicast
    logits = sum(path.stat().st_size for path in files if path.name in (fedmkt.KNOWLEDGE, fedmkt.VOTES))
    assert sum(value for key, value in metered.items() if key[2].endswith("/logits")) == logits


def test_shared_texts_end_in_their_label(seq: RunDir) -> None:
    one = party(seq, SERVER, "r01-teach")
    content = (commit(seq, 0, "label", SERVER) / "state" / "own_responses.jsonl").read_text()
    own = {record.id: record.text for record in parse_jsonl(Response, content, source="own")}
    texts = fedmkt.shared_texts(one)
    assert texts and set(texts) <= set(own)
    assert texts == fedmkt.shared_texts(party(seq, "client-2", "r01-learn"))
    for name, text in texts.items():
        reasoning, last = text.rsplit("\n", 1)
        assert last in [f"The answer is {letter}" for letter in LETTERS]
        assert own[name].startswith(reasoning)


def test_with_one_tokenizer_nothing_is_aligned_and_no_row_is_lost(seq: RunDir) -> None:
    """Oracle 4 on a whole run."""
    for number in (1, 2):
        for name, step in ((SERVER, "teach"), ("client-1", "learn")):
            assert metrics(seq)[number, name, "rows_with_knowledge"] == 1.0
            stored = party(seq, name, "r02-learn" if step == "learn" else "r02-teach")
            assert all(not known for known in stored.latest_json(fedmkt.ALIGNMENTS)["maps"].values())


# -- one way


def test_a_frozen_llm_teaches_once_and_clients_send_nothing(tmp_path: Path) -> None:
    """Pitfall 12: the public code sends the LLM's logits one time too many."""
    run = drive(make(tmp_path, "method.server_update=none", "method.label_source=llm"))
    exchange = run.root / "exchange"
    assert [path.parent.name for path in exchange.rglob(fedmkt.KNOWLEDGE)] == ["r00-label"]
    assert {path.name for path in (exchange / "client-1").rglob("*.*")} == {
        "adapter.safetensors",
        "manifest.json",
    }
    assert "teach" not in [step.name for step in read_plan(run).steps]
    assert not list((run.root / "parties" / SERVER).rglob("model.safetensors"))
    found = metrics(run)
    assert found[1, "client-1", "cross_entropy/server"] == found[2, "client-1", "cross_entropy/server"]
    assert found[1, "client-1", "train_loss"] != found[2, "client-1", "train_loss"]


# -- repeatable, and every switch does something


def test_the_same_run_twice_gives_the_same_bytes(references: dict[str, RunDir], tmp_path: Path) -> None:
    for mode, reference in references.items():
        again = drive(make(tmp_path / mode, f"method.mode={mode}"))
        assert again.metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_no_metric_stands_twice(references: dict[str, RunDir]) -> None:
    for run in references.values():
        lines = [line.rsplit(",", 1)[0] for line in run.metrics_csv.read_text().splitlines()]
        assert len(lines) == len(set(lines))


def values(run: RunDir) -> dict[tuple[int, str, str], float]:
    names = ("train_loss", "cross_entropy/", "selected/")
    return {key: value for key, value in metrics(run).items() if key[2].startswith(names)}


SWITCHES = [
    ("letter", "method.label_source=llm"),
    ("letter", "method.label_source=oracle"),
    ("letter", "method.selection=weighted_mean"),
    ("letter", "method.selection=paper"),
    ("letter", "method.hard_weight=0.5"),
    ("letter", "method.temperature=3.0"),
    ("letter", "method.server_update=none"),
    ("letter", "training.client.decay=0.01"),
    ("letter", "training.local.decay=0.01"),
    ("letter", "lora.rank=4"),
    ("letter", "shots=1"),
    ("seq", "method.top_k=3"),
    ("seq", "method.selection=paper"),
    ("seq", "method.temperature=3.0"),
]


@pytest.mark.parametrize(("mode", "switch"), SWITCHES)
def test_every_switch_changes_a_number(
    references: dict[str, RunDir], mode: str, switch: str, tmp_path: Path
) -> None:
    run = drive(make(tmp_path, f"method.mode={mode}", switch))
    assert values(run) != values(references[mode])


def test_modes_differ(references: dict[str, RunDir]) -> None:
    assert values(references["letter"]) != values(references["seq"])


def test_the_default_is_the_one_of_the_design() -> None:
    config = fedmkt.Config()
    assert (config.mode, config.label_source, config.selection) == ("letter", "vote", "greater")
    assert (config.align, config.hard_weight, config.temperature, config.top_k) == ("offset", 0.9, 1.0, 32)
    assert config.server_update == "kd"


def test_an_unknown_option_is_answered_with_the_legal_ones() -> None:
    found = layers(scenario="1", method="fedmkt", dataset="lab-math", size="tiny", settings=["method.topk=3"])
    with pytest.raises(ConfigError, match=r"did you mean 'top_k'.*label_source"):
        resolve_run(found)


@pytest.mark.parametrize("mode", ["letter", "seq"])
def test_canaries_of_private_questions_stay_with_their_party(mode: str, tmp_path: Path) -> None:
    run = make(tmp_path, f"method.mode={mode}")
    canaries = plant(run)
    drive(run)
    assert canaries and list((run.root / "exchange").rglob("*.safetensors"))
    assert found_outside(run, canaries) == []


# -- pauses


@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (Stage(0, "label", SERVER), 5, {"generate", "top_knowledge"}),
        (Stage(2, "share", "client-1"), 3, {"fit", "top_knowledge"}),
        (Stage(1, "teach", SERVER), 3, {"fit", "generate", "top_knowledge"}),
    ],
    ids=["label", "share", "teach"],
)
def test_a_paused_stage_commits_the_same_bytes(
    stage: Stage,
    every: int,
    inside: set[str],
    tmp_path: Path,
    paused: RunDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_same_bytes(paused, stage, tmp_path, monkeypatch, every=every, inside=inside)


@pytest.fixture(scope="module")
def paused(smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    """Small groups give many safe points."""
    small = ("training.{}.micro_tokens=300", "training.{}.batch_size=2")
    groups = [one.format(kind) for kind in ("local", "client", "server") for one in small]
    return drive(make(tmp_path_factory.mktemp("paused"), "method.mode=seq", *groups))
