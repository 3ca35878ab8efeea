from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lada.gpus import stage_device
from lada.layers import read_run
from lada.numerics import set_matmul_precision
from lada.ranks import ALONE, Ranks
from lada.stage import set_numerics
from tests.fake_runs import make_run


def test_matmul_precision_keeps_float32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        chosen, error = set_matmul_precision("medium")
        assert torch.get_float32_matmul_precision() == chosen
        assert chosen == "highest" or error < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_on_a_gpu_are_true_float32_whatever_run_yaml_says() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for wanted in ("highest", "high", "medium"):
            assert set_matmul_precision(wanted, "cuda")[0] == "highest"
            assert torch.get_float32_matmul_precision() == "highest", "no TF32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_stage_sets_products_by_where_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_to: list[tuple[str, str]] = []
    monkeypatch.setattr("lada.stage.set_matmul_precision", lambda *said: set_to.append(said))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    lab = read_run(make_run(tmp_path).root)
    paper = lab.model_copy(update={"tier": "paper"})
    set_numerics(lab, ALONE)
    set_numerics(paper, ALONE)
    set_numerics(lab, Ranks(0, 2, device="cuda:0"))
    set_numerics(paper, Ranks(0, 2, device="cpu"))
    assert [device for _, device in set_to] == ["cpu", "cuda", "cuda", "cpu"]
    assert stage_device("lab", ALONE).type == "cpu"
