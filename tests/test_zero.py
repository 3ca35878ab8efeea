"""What DeepSpeed is given; what it makes of it is in test_ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lada import zero
from lada.config import TrainOptions
from lada.ranks import Ranks


@pytest.mark.parametrize(("device", "fused"), [("cpu", None), ("cuda", True)])
def test_steps_on_a_gpu_take_no_copies_of_the_states(
    device: str, fused: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def engine(ranks: Ranks, inside: nn.Module, adam: torch.optim.Optimizer, *, clip: float) -> None:
        given.append(adam.defaults["fused"])

    monkeypatch.setattr(zero, "_engine", engine)
    model: Any = SimpleNamespace(
        ranks=Ranks(0, 2, zero=2, device=device), trainable=lambda: [nn.Parameter(torch.zeros(3))]
    )
    zero.ZeroOptimiser(model, TrainOptions(learning_rate=0.1), 0.1)
    assert given == [fused]
