"""A text of the same model state to the same prompt is generated once, and would be the same text again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lada.answering
from lada.answering import LENGTHS, ORIGIN, OWN_TEXTS, Known, answer, origin
from lada.config import SERVER
from lada.exchange import commit as commit_stage
from lada.party import records_payload
from lada.records import Response, read_jsonl
from lada.rundir import RunDir, Stage
from tests.federation import commit, drive, make, metrics
from tests.one_party import party
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_fsync")]
FEW = ("data.num_test=4", "data.num_train=8", "data.num_public=16")
STILL = "training.server.learning_rate=0"
"""The server's model is saved after each round, and is the same model from round 1 on."""


def without_reuse(run: RunDir) -> RunDir:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lada.answering, "_known", lambda party, source: Known())
        return drive(run)


def reused(run: RunDir, name: str) -> dict[tuple[int, str], float]:
    """(round, metric) -> how many texts were not generated again."""
    found = metrics(run)
    return {(key[0], key[2]): value for key, value in found.items() if key[1] == name and "_reused" in key[2]}


def rows(run: RunDir) -> list[str]:
    lines = run.metrics_csv.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "responses_reused" not in line]


def published(run: RunDir) -> dict[str, bytes]:
    """All messages but their manifests, which hold the attempts' names."""
    root = run.root / "exchange"
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("method", "settings", "who", "when"),
    [
        ("fedkd", (STILL, "rounds=3"), SERVER, (3, "responses_reused")),
        ("lada", (STILL, "rounds=3", "method.select.rule=quantile", "method.cold.clusters=4"), SERVER, None),
        ("lada", ("rounds=2", "method.schedule=server_last"), "client-1", (2, "responses_reused")),
    ],
    ids=["fedkd", "lada-other-batches", "lada-server-last"],
)
def test_reuse_gives_what_generation_would_give_again(
    method: str, settings: tuple[str, ...], who: str, when: tuple[int, str] | None, tmp_path: Path
) -> None:
    """Real lab models, greedy decoding: every message, model and metric is the same, byte for byte."""
    one, other = (make(tmp_path / name, *FEW, *settings, method=method) for name in ("a", "b"))
    drive(one)
    without_reuse(other)
    assert published(one) == published(other)
    assert rows(one) == rows(other)
    kept = reused(one, who)
    assert (kept[when] if when else sum(kept.values())) > 0
    assert sum(reused(other, who).values()) == 0


def test_a_model_that_learnt_answers_everything_anew(tmp_path: Path) -> None:
    run = drive(make(tmp_path, *FEW, "rounds=2", method="fedkd"))
    for name in (SERVER, "client-1"):
        assert reused(run, name) == {(1, "responses_reused"): 0, (2, "responses_reused"): 0}


# -- one party, no models that know anything


@pytest.fixture()
def server(smallest_lab: Path, tmp_path: Path) -> Any:
    """The server in round 1 and in round 2 of a run whose server never learns; round 1 has answered."""
    run = make(
        tmp_path,
        *SETTINGS,
        "generation.temperature=0",
        "generation.max_new_tokens=8",
        small=False,
        method="fedkd",
    )
    return lambda stage: party(run, SERVER, stage)


def answered(one: Any, ids: list[str], **named: Any) -> tuple[dict[str, Response], dict[str, float]]:
    """Answer and commit; texts and counts."""
    texts, outbox = answer(one, ids, **named)
    counts = json.loads(outbox.private["metrics.json"].data)
    run, stage = one.run, one.stage
    assert commit_stage(run, stage, outbox, attempt="01-x", run_id="x", inputs={})
    return texts, counts


def test_endless_texts_are_not_tried_again(server: Any) -> None:
    one, two = server("r01-respond"), server("r02-respond")
    ids = list(one.public)
    texts, counts = answered(one, ids[:10])
    assert counts["responses_dropped"] == 10 - len(texts) > 0
    _, counts = answered(two, ids)
    assert counts["responses_reused"] == 10
    assert counts["responses"] + counts["responses_dropped"] == 16


@pytest.mark.parametrize(
    "change",
    [
        {"generation": {"max_new_tokens": 9}},
        {"generation": {"batch_size": 2}},
        {"numerics": {"head_chunk": 7}},
        {"exchange": {"publish_confidence": True}},
    ],
    ids=str,
)
def test_whatever_can_change_a_text_makes_another_origin(change: dict[str, Any], server: Any) -> None:
    one, two = server("r01-respond"), server("r02-respond")
    assert origin(one) == origin(two)
    ((part, values),) = change.items()
    options = getattr(two.config, part).model_copy(update=values)
    two.config = two.config.model_copy(update={part: options})
    assert origin(one) != origin(two)
    answered(one, list(one.public))
    assert answered(two, list(one.public))[1]["responses_reused"] == 0


def test_sampled_texts_are_kept_only_where_the_method_says_so(server: Any) -> None:
    one, two, three = (server(f"r0{number}-respond") for number in (1, 2, 2))
    for each in (one, two, three):
        hot = each.config.generation.model_copy(update={"temperature": 1.0, "max_new_tokens": 64})
        each.config = each.config.model_copy(update={"generation": hot})
    ids = list(one.public)
    first, _ = answered(one, ids)
    assert first
    anew, outbox = answer(two, ids)
    assert json.loads(outbox.private["metrics.json"].data)["responses_reused"] == 0
    assert anew != first
    kept, counts = answered(three, ids, keep_sampled=True)
    assert kept == first and counts["responses_reused"] == 16


def test_texts_that_are_not_what_the_origin_says_are_generated_again(server: Any) -> None:
    """A stage may keep texts of its own under this name, without an origin: they are then not reused."""
    stages = ("r01-respond", "r01-learn", "r02-respond")
    one, two, three = (server(name) for name in stages)
    ids = list(one.public)
    answered(one, ids)
    _, outbox = answer(two, ids)
    del outbox.private[ORIGIN]
    other = [Response(id=ids[0], text="something else")]
    outbox.private[OWN_TEXTS] = records_payload(other, "state")
    assert commit_stage(two.run, two.stage, outbox, attempt="01-x", run_id="x", inputs={})
    assert answered(three, ids)[1]["responses_reused"] == 0


def test_all_texts_of_a_model_state_stay_known_but_only_the_asked_ones_are_returned(tmp_path: Path) -> None:
    run = drive(make(tmp_path, STILL, *FEW, "rounds=1", method="fedkd"))
    two = party(run, SERVER, "r01-learn")
    before = read_jsonl(Response, commit(run, 1, "respond", SERVER) / OWN_TEXTS)
    asked = [text.id for text in before[:3]]
    texts, outbox = answer(two, asked[::-1])
    assert list(texts) == asked[::-1]
    kept = [json.loads(line)["id"] for line in outbox.private[OWN_TEXTS].data.decode().splitlines()]
    assert kept == [text.id for text in before]
    assert set(json.loads(outbox.private[LENGTHS].data)) == set(two.public)


def test_the_digest_is_of_the_model_that_would_be_opened(tmp_path: Path) -> None:
    run = drive(make(tmp_path, *FEW, "rounds=1", method="fedkd"))
    assert party(run, SERVER, "r01-respond").model_digest == "as it came"
    prepared, learnt = (party(run, "client-1", name).model_digest for name in ("r01-respond", "r01-learn"))
    assert prepared == learnt != party(run, SERVER, "r01-learn").model_digest
    manifest = json.loads((run.commit(Stage(0, "prepare", "client-1")) / "manifest.json").read_text())
    assert prepared in [entry["sha256"] for entry in manifest["files"]]
