"""AdamW for weights that are too coarse to be moved by small steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lada.config import TrainOptions


def open_adamw(
    parameters: Sequence[nn.Parameter], options: TrainOptions, learning_rate: float
) -> torch.optim.AdamW:
    """AdamW of a training, its betas 0.9 and 0.999; with master weights where any parameter needs them."""
    narrow = any(one.dtype != torch.float32 and one.dtype != torch.float64 for one in parameters)
    kind = MasterAdamW if narrow else torch.optim.AdamW
    fused = all(one.device.type in ("cpu", "cuda") for one in parameters)
    found: torch.optim.AdamW = kind(
        parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=options.weight_decay, fused=fused
    )
    return found


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of bfloat16 parameters, which follow them, rounded, after every step.

    A step of the paper's rates moves a weight by a fraction of what bfloat16 can tell apart: taken on the
    weights themselves, nearly all of it would be lost. Choice: the copies begin anew with every training, so
    that what is kept between stages is the model in its own precision.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        self._followers = list(parameters)
        self._masters = [one.detach().float().requires_grad_(True) for one in parameters]
        super().__init__(self._masters, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the copies, and have the parameters follow."""
        for master, one in zip(self._masters, self._followers, strict=True):
            master.grad = None if one.grad is None else one.grad.float()
        result: float | None = super().step(closure)
        for master, one in zip(self._masters, self._followers, strict=True):
            one.copy_(master)
            master.grad = None
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the parameters' gradients."""
        for one in self._followers:
            one.grad = None

    def state_dict(self) -> dict[str, Any]:
        """As usual, each parameter's copy among its moments."""
        content = super().state_dict()
        held = {
            i: {**moments, "master": self._masters[i].detach()} for i, moments in content["state"].items()
        }
        return {**content, "state": held}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Put a `state_dict` back."""
        held = {i: dict(moments) for i, moments in content["state"].items()}
        with torch.no_grad():
            for i, moments in held.items():
                self._masters[i].copy_(moments.pop("master"))
        super().load_state_dict({**content, "state": held})
