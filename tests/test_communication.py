"""Every byte is metered: sums are what lies in the exchange, contents are the page's formulas (section 10).

A file counts that a method sends. Manifests are the exchange's own and count nowhere. The formulas count a
text's UTF-8 bytes and 4 bytes an id; the metric ``bytes_content`` is the same count of what was really sent,
so formula and meter must agree to the byte, for the n, ρ and b that the run had.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save

from lada.communication import FILE_FRAME, RECORD_FRAME, content_bytes
from lada.config import SERVER
from lada.lab import WEIGHTS
from lada.manifest import FileEntry, read_manifest
from lada.records import Response, Reward, SampleId, Trace, dump_jsonl, read_jsonl
from lada.rundir import RunDir
from lada.synthetic import Synthetic
from tests import smallest_models as smallest_models_module
from tests.federation import drive, make, metrics
from tests.smallest_models import SETTINGS
from tests.test_fedmkt import lettered

pytestmark = pytest.mark.slow
CLIENTS = ("client-1", "client-2", "client-3")
SFT_LADA = "sft-lada"
REAL = (
    *("data.num_train=8", "data.num_test=4", "data.num_public=8", "generation.max_new_tokens=40"),
    *("training.client.batch_size=2", "method.search.rollouts=2"),
)
SHORT = ("method.question_tokens=12", "method.solution_tokens=24", "method.max_steps=2")
ARMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "standalone": ("standalone", SETTINGS, "smallest"),
    "standalone_matched": ("standalone_matched", SETTINGS, "smallest"),
    "lada": ("lada", SETTINGS, "smallest"),
    "lada-confident": ("lada", (*SETTINGS, "exchange.publish_confidence=true"), "smallest"),
    "fedkd": ("fedkd", SETTINGS, "smallest"),
    "fedkd-sequential": ("fedkd", (*SETTINGS, "method.schedule=sequential"), "smallest"),
    "fedkd-one-way": ("fedkd", (*SETTINGS, "method.server_update=none"), "smallest"),
    "fedmkt-letter": ("fedmkt", SETTINGS, "smallest"),
    "fedmkt-seq": ("fedmkt", (*SETTINGS, "method.mode=seq"), "smallest"),
    "wasp": ("wasp", (*SETTINGS, "method.steps=2", "method.per_step=6"), "writing"),
    "fedmkt+lada": ("fedmkt", (*SETTINGS, "method.plugin=lada"), "smallest"),
    "wasp+lada": (
        "wasp",
        (*SETTINGS, "method.steps=2", "method.per_step=6", "method.plugin=lada"),
        "writing",
    ),
    "sft": ("sft", SETTINGS, "smallest"),
    SFT_LADA: ("sft", (*SETTINGS, "method.selection=lada"), "smallest"),
    "socratic_cot": ("socratic_cot", (*SETTINGS, *SHORT), "smallest"),
    "rstar": ("rstar", REAL, "real"),
    "rstar-R3": ("rstar", (*REAL, "method.reading=R3", "rounds=1"), "real"),
}
"""Arm -> method, settings, models. Three clients, two rounds."""


class Driven:
    """Makes and drives each arm once."""

    def __init__(self, runs: Path, models: dict[str, Path]) -> None:
        self._runs, self._models = runs, models
        self._found: dict[str, RunDir] = {}

    def __call__(self, arm: str) -> RunDir:
        if arm not in self._found:
            method, settings, models = ARMS[arm]
            if arm == SFT_LADA:
                settings = (*settings, f"method.replay={self('lada').root.name}")
            batch = ("training.client.batch_size=4",) if models != "real" else ()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LADA_LAB_WEIGHTS", str(self._models[models]))
                run = make(self._runs, *settings, *batch, small=False, method=method, scenario="1")
                self._found[arm] = drive(run)
        return self._found[arm]


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    smallest, writing = (tmp_path_factory.mktemp(name) for name in ("smallest", "writing"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallest_models_module, "_tokenizer", lettered)  # so that answers have letters
        smallest_models_module.write_models(smallest)
        for path in smallest.iterdir():
            real = path.name == "qwen3-32b"  # only a real model can write a question
            (writing / path.name).symlink_to((WEIGHTS if real else smallest) / path.name)
        patch.setattr("os.fsync", lambda descriptor: None)
        folders = {"smallest": smallest, "writing": writing, "real": WEIGHTS}
        yield Driven(tmp_path_factory.mktemp("runs"), folders)


class Sent(NamedTuple):
    """A published file."""

    round: int
    sender: str
    recipient: str
    step: str
    kind: str
    path: Path
    items: int

    @property
    def direction(self) -> str:
        return "down" if self.sender == SERVER else "up"

    @property
    def copies(self) -> int:
        return 3 if self.recipient == "all" else 1


def exchange(run: RunDir) -> list[Sent]:
    """Every file in the exchange but manifests, with the kind that its message's manifest states."""
    found = []
    for path in sorted((run.root / "exchange").rglob("*")):
        if not path.is_file() or path.name == "manifest.json":
            continue
        sender, recipient, stage = path.parent.relative_to(run.root / "exchange").parts
        entries = {one.path: one for one in read_manifest(path.parent, sender, stage).files}
        entry = entries[path.name]
        number, step = int(stage[1:3]), stage[4:]
        found.append(Sent(number, sender, recipient, step, entry.kind, path, entry.items))
    return found


def metered(run: RunDir, measure: str) -> dict[tuple[int, str, str, str], int]:
    """(round, party, direction, kind) -> bytes."""
    found = {}
    for (number, party, name), value in metrics(run).items():
        head, *rest = name.split("/")
        if head == f"bytes_{measure}":
            direction, kind = rest
            found[number, party, direction, kind] = int(value)
    return found


# -- sums are what lies on disk


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_metered_is_what_lies_in_the_exchange(arm: str, driven: Driven) -> None:
    """Oracle 10, for every method: by round, party, kind and direction; unicast counts every recipient."""
    run = driven(arm)
    once: Counter[tuple[int, str, str, str]] = Counter()
    unicast: Counter[tuple[int, str, str, str]] = Counter()
    for one in exchange(run):
        key = (one.round, one.sender, one.direction, one.kind)
        once[key] += one.path.stat().st_size
        unicast[key] += one.copies * one.path.stat().st_size
    assert metered(run, "once") == dict(once)
    assert metered(run, "unicast") == dict(unicast)
    assert all(once[key] <= unicast[key] <= 3 * once[key] for key in once)
    if arm.startswith("standalone"):
        assert not once
    else:
        assert sum(once.values()) > 0
    by_step = sum(value for key, value in metrics(run).items() if key[2].startswith("bytes_sent/"))
    assert by_step == sum(once.values())


@pytest.mark.parametrize("arm", ARMS)
def test_a_format_adds_no_more_than_it_may(arm: str, driven: Driven) -> None:
    """The wire is JSON lines and safetensors; what that adds is bounded per record and tensor."""
    run = driven(arm)
    content = metered(run, "content")
    room: Counter[tuple[int, str, str, str]] = Counter()
    for one in exchange(run):
        key = (one.round, one.sender, one.direction, one.kind)
        if one.path.suffix == ".safetensors":
            head = int.from_bytes(one.path.read_bytes()[:8], "little")
            tensors = json.loads(one.path.read_bytes()[8 : 8 + head])
            room[key] += 16 + FILE_FRAME * len(tensors)
        else:
            lines = one.path.read_text(encoding="utf-8").split("\n")[:-1]
            assert len(lines) == one.items
            room[key] += sum(RECORD_FRAME + 5 * line.count("\\") for line in lines)
    for key, value in metered(run, "once").items():
        assert 0 <= value - content[key] <= room[key], key


# -- contents are the formulas


def records(run: RunDir, kind: type[Any], number: int, sender: str, name: str) -> list[Any]:
    """Records of all files of one kind that a party sent in a round, recipients in order."""
    mine = [one for one in exchange(run) if (one.round, one.sender, one.kind) == (number, sender, name)]
    return [record for one in mine for record in read_jsonl(kind, one.path)]


def texts_of(run: RunDir, number: int, sender: str) -> tuple[int, float]:
    """n and b: texts that a party sent in a round, and their mean bytes."""
    sizes = [len(one.text.encode()) for one in records(run, Response, number, sender, "responses")]
    return len(sizes), sum(sizes) / len(sizes) if sizes else 0.0


def methods_own(run: RunDir) -> dict[tuple[int, str, str, str], int]:
    """Content without adapters and rewards, which stand in columns of their own, and without zeros."""
    found = metered(run, "content")
    return {key: value for key, value in found.items() if key[3] not in ("adapters", "rewards") and value}


def formula(n: int, b: float, each: int = 4) -> int:
    """n (b + 4)."""
    total = n * b + each * n
    assert total == pytest.approx(round(total))
    return round(total)


def kinds_sent(run: RunDir) -> set[tuple[str, str]]:
    return {(direction, kind) for _, _, direction, kind in methods_own(run)}


@pytest.mark.parametrize("arm", ["standalone", "standalone_matched"])
def test_standalone_sends_nothing(arm: str, driven: Driven) -> None:
    run = driven(arm)
    assert exchange(run) == [] and not [key for key in metrics(run) if key[2].startswith("bytes")]


@pytest.mark.parametrize("arm", ["fedkd", "fedkd-sequential"])
def test_fedkd(arm: str, driven: Driven) -> None:
    """Up n (b + 4) per client, down n (b + 4) per client: once on the wire, since all get the same texts."""
    run = driven(arm)
    found, counts = methods_own(run), metrics(run)
    expected = {}
    for number in (1, 2):
        for name in (SERVER, *CLIENTS):
            n, b = texts_of(run, number, name)
            again = "/answer" if arm == "fedkd-sequential" and name == SERVER else ""
            assert (
                n
                == counts[number, name, f"responses{again}"]
                == 16 - counts[number, name, f"responses_dropped{again}"]
            )
            expected[number, name, "down" if name == SERVER else "up", "responses"] = formula(n, b)
    assert found == expected
    once, unicast = metered(run, "once"), metered(run, "unicast")
    for key in expected:
        assert unicast[key] == (3 if key[1] == SERVER else 1) * once[key]


def test_one_way_fedkd_sends_its_texts_once_in_all(driven: Driven) -> None:
    """Choice (fedkd.py): an LLM that does not learn says n (b + 4) once in all; clients send nothing."""
    run = driven("fedkd-one-way")
    n, b = texts_of(run, 0, SERVER)
    assert n == metrics(run)[0, SERVER, "responses/answer"] > 0
    assert methods_own(run) == {(0, SERVER, "down", "responses"): formula(n, b)}


@pytest.mark.parametrize("arm", ["lada", "lada-confident", "fedmkt+lada"])
def test_lada(arm: str, driven: Driven) -> None:
    """Up 4 ρ n + ρ0 n (b + 4), down ρ n (b + 4) + 4 ρ0 n per client; ids are sent a round before.

    A text that came to no end is asked for but not sent. A confidence is 4 bytes more a text.
    """
    run = driven(arm)
    found, expected = methods_own(run), ladas_own(run, each=8 if arm == "lada-confident" else 4)
    for number in (1, 2):
        n, b = texts_of(run, number, SERVER)
        each = 8 if arm == "lada-confident" else 4
        expected[number, SERVER, "down", "responses"] += formula(n, b, each)
    assert found == {key: value for key, value in expected.items() if value}
    assert {(key[2], key[3]) for key in found} == {
        (way, kind) for way in ("up", "down") for kind in ("ids", "responses")
    }


def ladas_own(run: RunDir, *, each: int = 4) -> Counter[tuple[int, str, str, str]]:
    """Ids both ways and clients' texts; the server's texts are checked to be no more than were asked for."""
    counts, expected = metrics(run), Counter[tuple[int, str, str, str]]()
    for number in (1, 2):
        for name in CLIENTS:
            mine, theirs = (
                counts[number, name, f"selected/{SERVER}"],
                counts[number, SERVER, f"selected/{name}"],
            )
            expected[number - 1, name, "up", "ids"] += int(4 * mine)
            expected[number - 1, SERVER, "down", "ids"] += int(4 * theirs)
            n, b = texts_of(run, number, name)
            assert n <= theirs <= 16
            expected[number, name, "up", "responses"] += formula(n, b, each)
        assert texts_of(run, number, SERVER)[0] <= sum(
            counts[number, name, f"selected/{SERVER}"] for name in CLIENTS
        )
    return expected


def test_lada_s_missing_texts_are_those_that_came_to_no_end(driven: Driven) -> None:
    run = driven("lada")
    for number in (1, 2):
        for name in CLIENTS:
            asked = {one.id for one in records(run, SampleId, number - 1, name, "ids")}
            sent = [
                one
                for one in exchange(run)
                if one.recipient == name and (one.round, one.kind) == (number, "responses")
            ]
            had = {one.id for message in sent for one in read_jsonl(Response, message.path)}
            assert had <= asked
            assert len(asked - had) <= metrics(run)[number, SERVER, "responses_dropped"]


def test_fedmkt_letter(driven: Driven) -> None:
    """13 n bytes a transfer: four float16 logits, a float32 cross-entropy, a letter. Exactly, both ways.

    Before round 1 a byte per public question settles the labels (Choice: the public set has none).
    """
    run = driven("fedmkt-letter")
    n = int(metrics(run)[0, SERVER, "shared_texts"])
    assert 0 < n <= 16
    expected = {(0, name, "up", "logits"): 16 for name in CLIENTS} | {(0, SERVER, "down", "logits"): 16}
    for number in (1, 2):
        expected |= {(number, name, "up", "logits"): 13 * n for name in CLIENTS}
        expected[number, SERVER, "down", "logits"] = 13 * n
    assert methods_own(run) == expected


def test_fedmkt_seq(driven: Driven) -> None:
    """n (4 + 6 K n_pos) a transfer; the n (b + 4) of the shared texts once (Choice: they do not change)."""
    run = driven("fedmkt-seq")
    n, b = texts_of(run, 0, SERVER)
    assert n == metrics(run)[0, SERVER, "shared_texts"] > 0
    texts = records(run, Response, 0, SERVER, "responses")
    # A position per token, the space before the text and the end among them.
    positions = sum(len(lettered().encode(text.text).ids) + 2 for text in texts)
    knowledge = 4 * n + 6 * 32 * positions
    expected = {(0, name, "up", "logits"): 16 for name in CLIENTS}
    expected[0, SERVER, "down", "responses"] = formula(n, b)
    for number in (1, 2):
        expected |= {(number, name, "up", "logits"): knowledge for name in CLIENTS}
        expected[number, SERVER, "down", "logits"] = knowledge
    assert methods_own(run) == expected


def test_wasp(driven: Driven) -> None:
    """Up 8 #G a vote; down the new questions of each step, with a letter and an id each."""
    run = driven("wasp")
    expected = wasps_own(run)
    assert methods_own(run) == {key: value for key, value in expected.items() if value}


def test_lada_in_wasp(driven: Driven) -> None:
    """WASP's votes and questions, and besides up ρ0 n (b + 4), down 4 ρ0 n.

    The server's texts came with the questions, so a client need not ask for them: no 4 ρ n up (Choice).
    """
    run = driven("wasp+lada")
    expected, counts = wasps_own(run), metrics(run)
    for number in (1, 2):
        for name in CLIENTS:
            asked = int(counts[number, SERVER, f"selected/{name}"])
            expected[number, SERVER, "down", "ids"] += 4 * asked
            n, b = texts_of(run, number, name)
            assert n <= asked
            expected[number, name, "up", "responses"] += formula(n, b)
    assert methods_own(run) == {key: value for key, value in expected.items() if value}
    assert {("up", "responses"), ("down", "ids")} <= kinds_sent(run)


def wasps_own(run: RunDir) -> Counter[tuple[int, str, str, str]]:
    """Votes and questions of all steps."""
    expected: Counter[tuple[int, str, str, str]] = Counter()
    size = 0
    for number in (0, 1, 2):
        steps = [one for one in exchange(run) if one.round == number and one.kind in ("votes", "questions")]
        order = {"write_0": 0, "vote_1": 1, "write_1": 2, "vote": 3, "write": 4}
        for one in sorted(steps, key=lambda one: order[one.step]):
            if one.kind == "votes":
                expected[number, one.sender, "up", "votes"] += 8 * size
                continue
            new = read_jsonl(Synthetic, one.path)
            size += len(new)
            texts = [text for item in new for text in (item.question, item.rationale, *item.options)]
            expected[number, SERVER, "down", "questions"] += 5 * len(new) + sum(
                len(t.encode()) for t in texts
            )
    assert size > 6
    return expected


def test_sft_on_all_questions(driven: Driven) -> None:
    """Down n (b + 4) once over all rounds (Choice: the LLM does not change); nobody asks for all: up 0."""
    run = driven("sft")
    n, b = texts_of(run, 0, SERVER)
    assert n == metrics(run)[0, SERVER, "responses/answer"] > 0
    assert methods_own(run) == {(0, SERVER, "down", "responses"): formula(n, b)}


def test_sft_on_ladas_ids(driven: Driven) -> None:
    """Up 4 and down b + 4 for every id that is new in its round (Choice: a text is asked for once)."""
    run, lada = driven(SFT_LADA), driven("lada")
    found = methods_own(run)
    for name in CLIENTS:
        chosen = [{one.id for one in records(lada, SampleId, number, name, "ids")} for number in (0, 1)]
        new = [chosen[0], chosen[1] - chosen[0]]
        for number, ids in enumerate(new):
            assert found.get((number, name, "up", "ids"), 0) == 4 * len(ids)
    for number in (1, 2):
        n, b = texts_of(run, number, SERVER)
        assert found.get((number, SERVER, "down", "responses"), 0) == formula(n, b)
    assert kinds_sent(run) == {("up", "ids"), ("down", "responses")}


def test_socratic_cot(driven: Driven) -> None:
    """Down n (b + 4) of what is taught, once (Choice: LLM and public set do not change); up nothing."""
    run = driven("socratic_cot")
    n, b = texts_of(run, 0, SERVER)
    kept = sum(metrics(run)[0, SERVER, f"socratic/{name}"] for name in ("kept", "fallback"))
    assert n == kept * 16 > 0
    assert methods_own(run) == {(0, SERVER, "down", "responses"): formula(n, b)}


def test_rstar(driven: Driven) -> None:
    """Down the traces, several a question, once; place, letter and reward with each; up nothing (R2)."""
    run = driven("rstar")
    traces: Sequence[Trace] = records(run, Trace, 0, SERVER, "traces")
    assert len(traces) == metrics(run)[0, SERVER, "traces"] > 0
    content = sum(len(one.text.encode()) + 4 + 6 for one in traces)
    assert methods_own(run) == {(0, SERVER, "down", "traces"): content}


def test_rstar_s_other_reading(driven: Driven) -> None:
    """R3: a client's traces go up, a verdict of 6 bytes on each comes down."""
    run = driven("rstar-R3")
    expected = {}
    count = 0
    for name in CLIENTS:
        traces: Sequence[Trace] = records(run, Trace, 1, name, "traces")
        count += len(traces)
        expected[1, name, "up", "traces"] = sum(len(one.text.encode()) + 10 for one in traces)
    expected[1, SERVER, "down", "verdicts"] = 6 * count
    assert methods_own(run) == {key: value for key, value in expected.items() if value}


@pytest.mark.parametrize("arm", [arm for arm in ARMS if not arm.startswith("standalone")])
def test_adapters_and_rewards_stand_apart_and_are_exact_too(arm: str, driven: Driven) -> None:
    """float32 weights as they are; a reward is an id, a partner and its numbers."""
    run = driven(arm)
    content = metered(run, "content")
    for (number, party, direction, kind), value in content.items():
        mine = [one for one in exchange(run) if (one.round, one.sender, one.kind) == (number, party, kind)]
        if kind == "rewards":
            lines = [json.loads(line) for one in mine for line in one.path.read_text().splitlines()]
            assert value == sum(5 + 4 * (len(line) - 2) for line in lines)
        if kind == "adapters":
            sizes = [one.path.stat().st_size for one in mine]
            assert 0 < sum(sizes) - value < 16 + FILE_FRAME * 400 and value % 4 == 0, direction


# -- one file at a time


def test_a_letter_message_on_a_thousand_texts_is_thirteen_thousand_bytes(tmp_path: Path) -> None:
    """Oracle 10."""
    arrays = {
        "letters": np.zeros(1000, "u1"),
        "ce": np.zeros(1000, "f4"),
        "logits": np.zeros((1000, 4), "f2"),
    }
    path = tmp_path / "logits.safetensors"
    path.write_bytes(save(arrays))
    assert content_bytes(path, entry_of(path, "logits", 1000)) == 13_000
    assert path.stat().st_size - 13_000 <= 16 + 3 * FILE_FRAME


def entry_of(path: Path, kind: str, items: int) -> FileEntry:
    head = {"path": f"public/all/{path.name}", "sha256": "0" * 64}
    return FileEntry.model_validate({**head, "bytes": path.stat().st_size, "kind": kind, "items": items})


@pytest.mark.parametrize(
    ("name", "kind", "data", "expected"),
    [
        ("ids.jsonl", "ids", dump_jsonl([SampleId(id="q1"), SampleId(id="q2")]), 8),
        ("responses.jsonl", "responses", dump_jsonl([Response(id="q", text="é\n\u2028")]), 4 + 6),
        (
            "responses.jsonl",
            "responses",
            dump_jsonl([Response(id="q", text="a", confidence=-1.0)]),
            4 + 1 + 4,
        ),
        ("rewards.jsonl", "rewards", dump_jsonl([Reward(id="q", partner="server", reward=0.5)]), 4 + 1 + 4),
        ("traces.jsonl", "traces", dump_jsonl([Trace(id="q", place=1, text="ab", letter="A", reward=1)]), 12),
        ("empty.jsonl", "responses", "", 0),
        ("adapter_hash.json", "adapters", '{"sha256": "0"}\n', 32),
    ],
)
def test_content_is_text_and_numbers_alone(
    name: str, kind: str, data: str, expected: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data.encode())
    assert content_bytes(path, entry_of(path, kind, data.count("\n"))) == expected
