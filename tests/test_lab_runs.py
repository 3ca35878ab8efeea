"""Runs that need models which really answer: the committed lab weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.answers import extract_letter
from lada.records import Response, SampleLog, read_jsonl
from lada.socratic import parse_trace
from tests.federation import commit, drive, make, metrics

pytestmark = pytest.mark.slow


def test_ties_are_dropped_from_training_but_stay_in_the_log(tmp_path: Path) -> None:
    """Server and client hold the same model and the server never answers otherwise: all pairs are ties."""
    scenario = tmp_path / "twins.yaml"
    scenario.write_text(
        "scenario: twins\nparties:\n"
        "  - {name: server, model: meta-llama/Meta-Llama-3-8B}\n"
        "  - {name: client-1, model: meta-llama/Meta-Llama-3-8B}\n"
    )
    frozen = ("training.local.learning_rate=0.0", "rounds=1")
    run = drive(make(tmp_path, *frozen, scenario=str(scenario)))
    logs = read_jsonl(SampleLog, commit(run, 1, "learn", "client-1") / "samples.jsonl")
    assert all(log.same_text for log in logs)
    assert metrics(run)[1, "client-1", "trained_samples"] == 0
    assert metrics(run)[1, "client-1", "ties"] == len(logs)


def test_self_rationale_trains_on_own_right_texts(tmp_path: Path) -> None:
    answers = drive(make(tmp_path, method="standalone"))
    own = drive(make(tmp_path, "local.target=self_rationale", method="standalone"))
    states = [commit(run, 0, "prepare", "client-1") / "state" / "model.safetensors" for run in (answers, own)]
    assert states[0].read_bytes() != states[1].read_bytes()


def test_the_oracle_trains_on_a_share_of_the_right_texts(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.select.mode=oracle", "method.select.share=0.5"))
    answers = {item.id: item for item in run.sealed_items()}
    for number in (1, 2):
        path = run.root / "exchange" / "server" / "client-1" / f"r0{number}-respond" / "responses.jsonl"
        sent = read_jsonl(Response, path)
        right = {r.id for r in sent if extract_letter(r.text, answers[r.id].options) == answers[r.id].answer}
        logs = read_jsonl(SampleLog, commit(run, number, "learn", "client-1") / "samples.jsonl")
        trained = {log.id for log in logs}
        assert {log.selected_by for log in logs} == {"oracle"}
        assert trained < right < {text.id for text in sent}
        assert metrics(run)[number, "client-1", "selected/server"] == 16 >= len(trained) > 8
        assert metrics(run)[number, "client-1", "filter/server/chosen_right"] == 1.0


@pytest.mark.parametrize("dataset", ["lab-math", "lab-cot"])
@pytest.mark.parametrize("variant", ["concat", "unified"])
def test_the_llm_takes_questions_apart_and_clients_learn_it(
    variant: str, dataset: str, tmp_path: Path
) -> None:
    setting = (f"method.variant={variant}", "rounds=1", "generation.max_new_tokens=96")
    run = drive(make(tmp_path, *setting, dataset=dataset, method="socratic_cot"))
    found = metrics(run)
    assert found[0, "server", "socratic/kept"] > 0.4
    assert found[0, "server", "socratic/fallback"] < 0.5
    path = run.root / "exchange" / "server" / "all" / "r00-decompose" / "responses.jsonl"
    traces = [steps for one in read_jsonl(Response, path) if (steps := parse_trace(one.text))]
    assert len(traces) == round(32 * found[0, "server", "socratic/kept"])
    assert all(2 <= len(steps) <= 6 for steps in traces)
    assert found[1, "client-1", "train_loss"] < found[1, "client-1", "train_loss_first"]
