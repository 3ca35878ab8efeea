from __future__ import annotations

import torch

from lada.numerics import set_matmul_precision


def test_matmul_precision_keeps_float32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        chosen, error = set_matmul_precision("medium")
        assert torch.get_float32_matmul_precision() == chosen
        assert chosen == "highest" or error < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)
