"""TIER=rehearsal: scenario 1 with random models of the real shapes in small, from models to CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lada.__main__ import main
from lada.layers import read_run
from lada.model_facts import model_facts
from lada.records import Response, read_jsonl
from lada.rundir import RunDir
from tests.test_staged_run import questions

SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "mathinstruct_sample.json"


def real_questions(folder: Path) -> Path:
    """Real questions in MathInstruct's format where they lie beside the checkout, else made-up ones."""
    if SAMPLE.is_file():
        return SAMPLE
    path = folder / "MathInstruct.json"
    path.write_text(json.dumps(questions()))
    return path


@pytest.mark.slow
def test_a_whole_run_of_scenario_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearsal-models", "--scenario", "1", "--models", str(tmp_path / "models")]) == 0
    monkeypatch.setenv("LADA_MODELS", str(tmp_path / "models"))
    data = real_questions(tmp_path)
    asked = ["--tier", "rehearsal", "--size", "tiny", "--dataset", "mathinstruct", "--data", str(data)]
    less = "rounds=1 data.num_train=4 data.num_test=4 data.num_public=8 generation.max_new_tokens=64"
    assert main(["run", *asked, "--set", less, "--runs", str(tmp_path)]) == 0
    assert "random weights" in capsys.readouterr().out.lower()
    (path,) = tmp_path.glob("1-lada-mathinstruct-*/run.yaml")
    run = RunDir(path.parent)
    config = read_run(run.root)
    for party in config.parties:
        assert party.learning_rate == model_facts(party.model).tuning.lora.distillation, (
            "as in the paper tier"
        )
    with run.metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["tier"] for row in rows} == {"rehearsal"} and len({row["party"] for row in rows}) == 4
    found = {(row["party"], row["round"], row["metric"]): float(row["value"]) for row in rows}
    assert min(value for (_, _, metric), value in found.items() if metric == "unparsed_rate") < 1
    for client in config.clients:
        assert found[client, "1", "trained_samples"] > 0, "some texts came to an end on both sides"
        sent = run.root / "exchange" / "server" / client / "r01-respond" / "responses.jsonl"
        assert read_jsonl(Response, sent)
        message = run.root / "exchange" / client / "server" / "r01-learn" / "adapter.safetensors"
        adapter = load_file(message)
        assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)
