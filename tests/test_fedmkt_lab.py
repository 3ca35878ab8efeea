"""FedMKT between tokenizers: the committed lab models, a Qwen server and a Llama client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada.config import SERVER
from lada.methods.fedmkt import ALIGNMENTS
from lada.rundir import RunDir
from tests.federation import commit, drive, make, metrics

pytestmark = pytest.mark.slow
SEQ = ("method.mode=seq", "method.selection=paper", "method.label_source=llm", "data.num_public=24")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> dict[str, RunDir]:
    return {
        align: drive(make(tmp_path_factory.mktemp(align), *SEQ, f"method.align={align}", method="fedmkt"))
        for align in ("offset", "dtw")
    }


def alignments(run: RunDir, number: int, step: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((commit(run, number, step, name) / ALIGNMENTS).read_text())
    return found


def test_offsets_leave_rows_out_and_warping_falls_back_on_the_next_token(runs: dict[str, RunDir]) -> None:
    for number in (1, 2):
        assert 0.5 < metrics(runs["offset"])[number, "client-1", "rows_with_knowledge"] < 1
        assert metrics(runs["dtw"])[number, "client-1", "rows_with_knowledge"] == 1
        assert metrics(runs["offset"])[number, "client-1", "selected/server"] > 12


def test_the_alignment_changes_what_is_learnt(runs: dict[str, RunDir]) -> None:
    found = {align: metrics(run)[1, "client-1", "train_loss/knowledge"] for align, run in runs.items()}
    assert found["offset"] != found["dtw"]


def test_a_text_that_the_llm_knows_best_is_not_learnt_from_a_client(runs: dict[str, RunDir]) -> None:
    """Oracle 5: with the LLM's labels on the LLM's texts S_0 is empty."""
    for run in runs.values():
        for number in (1, 2):
            assert metrics(run)[number, SERVER, "selected/client-1"] == 0
            assert (number, SERVER, "train_loss/knowledge") not in metrics(run)


def test_alignments_are_kept_from_round_to_round(runs: dict[str, RunDir]) -> None:
    for run in runs.values():
        first, second = (alignments(run, number, "learn", "client-1") for number in (1, 2))
        assert first["rows"] and all(first["rows"].values())
        for key, rows in first["rows"].items():
            assert rows.items() <= second["rows"][key].items()
        for key, known in first["maps"].items():
            assert known.items() <= second["maps"][key].items()


def test_warping_twice_gives_the_same_bytes(runs: dict[str, RunDir], tmp_path: Path) -> None:
    again = drive(make(tmp_path, *SEQ, "method.align=dtw", method="fedmkt"))
    assert again.metrics_csv.read_bytes() == runs["dtw"].metrics_csv.read_bytes()


def test_letters_move_between_tokenizers(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "rounds=1", method="fedmkt"))
    found = metrics(run)
    for name, other in ((SERVER, "client-1"), ("client-1", SERVER)):
        assert found[1, name, f"selected/{other}"] > 0
        assert found[1, name, "rows_with_knowledge"] == 1
