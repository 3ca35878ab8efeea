"""Runs that need models which really answer: the committed lab weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.records import SampleLog, read_jsonl
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
