"""What stays with a party: no wire type can hold it, no file outside its folder ever does."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import get_args

import pytest

from lada.manifest import RECORD_KINDS, Kind
from lada.records import Item, Question, Record, WeightsHash, read_jsonl
from lada.rundir import RunDir
from tests.smallest_models import SETTINGS
from tests.warm import Warm

WIRE: dict[type[Record], set[str]] = {
    RECORD_KINDS["ids"]: {"id"},
    RECORD_KINDS["responses"]: {"id", "text", "confidence"},
    RECORD_KINDS["rewards"]: {"id", "partner", "round_gain", "batch_gain", "reward"},
    RECORD_KINDS["traces"]: {"id", "place", "text", "letter", "reward"},
    RECORD_KINDS["verdicts"]: {"id", "place", "consistent"},
    WeightsHash: {"sha256"},
    RECORD_KINDS["questions"]: {"id", "question", "options", "rationale", "answer"},
}
"""Every field that can leave a party. ``text`` is a reasoning text on a public sample; ids, names and hashes
have patterns; the rest are numbers."""
FREE_TEXT = {("Response", "text"), ("Trace", "text")}
FROM_THE_SERVER_ALONE = {RECORD_KINDS["questions"]}
"""Questions that the server's model wrote; `check_commit` refuses them from anyone else (test_synthetic)."""
CLIENTS = [kind for kind in WIRE if kind not in FROM_THE_SERVER_ALONE]
PRIVATE = ("question", "options", "answer", "rationale", "domain", "group")


def test_every_kind_of_record_that_can_be_published_is_listed_here() -> None:
    assert set(RECORD_KINDS) < set(get_args(Kind))
    assert {*RECORD_KINDS.values(), WeightsHash} == set(WIRE)


def test_every_wire_type_has_the_listed_fields_and_no_other() -> None:
    assert {kind: set(kind.model_fields) for kind in WIRE} == WIRE
    assert len(FROM_THE_SERVER_ALONE) == 1


@pytest.mark.parametrize("kind", CLIENTS, ids=lambda kind: kind.__name__)
def test_a_wire_type_of_clients_has_no_field_that_could_hold_a_private_question(kind: type[Record]) -> None:
    assert not issubclass(kind, Question)
    schema = kind.model_json_schema()["properties"]
    for name, field in schema.items():
        texts = [part for part in field.get("anyOf", [field]) if part.get("type") == "string"]
        if (kind.__name__, name) not in FREE_TEXT:
            assert all("pattern" in part or "enum" in part for part in texts), name
        assert field.get("type") not in ("object", "array"), name


@pytest.mark.parametrize("field", PRIVATE)
def test_a_private_field_is_refused_by_every_wire_type_of_clients(field: str) -> None:
    legal = {"id": "q1", "text": "so", "partner": "server", "reward": 0.5, "sha256": "0" * 64}
    legal |= {"place": 1, "letter": "A", "consistent": True}
    for kind in CLIENTS:
        given = {name: value for name, value in legal.items() if name in WIRE[kind]}
        kind.model_validate(given)
        with pytest.raises(ValueError, match=field):
            kind.model_validate({**given, field: "secret"})


# -- canaries


def word(draw: random.Random) -> str:
    return "zq" + "".join(draw.choices(string.ascii_lowercase, k=14))


def plant(run: RunDir) -> list[str]:
    """Put a word of its own into every question, option and rationale of every private shard."""
    draw, canaries = random.Random(0), []
    for path in sorted(run.root.glob("parties/*/data/*.jsonl")):
        lines = []
        for line in path.read_text().splitlines():
            item = json.loads(line)
            words = [word(draw) for _ in range(6)]
            item["question"] += f" {words[0]}"
            item["options"] = [f"{text} {own}" for text, own in zip(item["options"], words[1:5], strict=True)]
            item["rationale"] = f"because {words[5]}"
            canaries += words
            lines.append(json.dumps(Item.model_validate(item).model_dump(), sort_keys=True))
        path.write_text("\n".join(lines) + "\n")
    return canaries


def found_outside(run: RunDir, canaries: list[str]) -> list[tuple[str, str]]:
    """(file, canary) for every canary in a file that others than its party may see."""
    outside = [path for path in run.root.rglob("*") if path.is_file() and "parties" not in path.parts]
    return [
        (path.relative_to(run.root).as_posix(), canary)
        for path in outside
        for canary in canaries
        if canary in path.read_bytes().decode("utf-8", errors="replace").lower()
    ]


@pytest.mark.slow
class TestRun:
    @pytest.fixture(scope="class")
    def made(self, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, list[str]]:
        """A run's folder and the command that drives it."""
        runs = tmp_path_factory.mktemp("privacy")
        options = ["--scenario", "1", "--size", "tiny", "--runs", str(runs), "--set", " ".join(SETTINGS)]
        outcome = warm.run(["init", *options])
        assert outcome.code == 0, outcome.output
        (root,) = runs.iterdir()
        return RunDir(root), ["run", *options]

    def test_public_questions_come_without_answers(self, made: tuple[RunDir, list[str]]) -> None:
        run, _ = made
        lines = [json.loads(line) for line in run.public.read_text().splitlines()]
        assert len(lines) == 16
        assert all(set(line) == {"id", "question", "options"} for line in lines)
        sealed = {item.id: item for item in read_jsonl(Item, run.sealed)}
        assert set(sealed) == {line["id"] for line in lines}
        assert {item.answer for item in sealed.values()} == set("ABCD")

    def test_clients_train_on_items_without_rationale(self, made: tuple[RunDir, list[str]]) -> None:
        run, _ = made
        for client in ("client-1", "client-2", "client-3"):
            items = read_jsonl(Item, run.data(client, "train"))
            assert len(items) == 8
            assert all(item.rationale is None for item in items)
            assert "rationale" not in run.data(client, "train").read_text()
            assert "rationale" not in run.data(client, "test").read_text()

    def test_private_and_public_questions_are_different(self, made: tuple[RunDir, list[str]]) -> None:
        run, _ = made
        public = {question.question for question in run.public_questions()}
        shards = [
            {item.question for item in read_jsonl(Item, run.data(f"client-{k}", part))}
            for k in (1, 2, 3)
            for part in ("train", "test")
        ]
        for number, shard in enumerate(shards):
            assert not shard & public
            assert not any(shard & other for other in shards[number + 1 :])

    def test_canaries_of_every_private_shard_stay_inside(
        self, made: tuple[RunDir, list[str]], warm: Warm
    ) -> None:
        run, command = made
        canaries = plant(run)
        assert len(canaries) == len(set(canaries)) == 6 * (3 * (8 + 4) + 12)
        outcome = warm.run(command)
        assert outcome.code == 0, outcome.output
        for folder in ("exchange", "logs"):
            assert any(path.stat().st_size for path in (run.root / folder).rglob("*") if path.is_file())
        assert found_outside(run, canaries) == []
        assert not [canary for canary in canaries if canary in outcome.output.lower()]

    def test_the_search_would_find_a_canary(self, made: tuple[RunDir, list[str]], tmp_path: Path) -> None:
        run = RunDir(tmp_path)
        leak = tmp_path / "exchange" / "client-1" / "all" / "r01-respond" / "responses.jsonl"
        leak.parent.mkdir(parents=True)
        leak.write_bytes(b'{"text": "It was ZQabc"}')
        assert found_outside(run, ["zqabc"]) == [
            ("exchange/client-1/all/r01-respond/responses.jsonl", "zqabc")
        ]
