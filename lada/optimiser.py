"""What turns gradients into steps: AdamW, whose states each rank has whole or, under ZeRO, a share of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lada.config import TrainOptions, derive_seed
from lada.language_model import LanguageModel
from lada.master_weights import open_adamw
from lada.zero import ZeroOptimiser

Check = Callable[[float], None]
"""Takes the gradient's norm; raises to refuse the step."""


class Optimiser:
    """AdamW whose states every rank holds whole; gradients are added up over the ranks before a step.

    Choice: betas 0.9 and 0.999, which the paper leaves open.
    """

    def __init__(self, model: LanguageModel, options: TrainOptions, learning_rate: float) -> None:
        self._ranks, self._clip = model.ranks, options.clip_norm
        self._parameters = model.trainable()
        self._adam = open_adamw(self._parameters, options, learning_rate)

    def begin(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def backward(self, part: Tensor, *, last: bool) -> None:
        """Add the gradients of a part of the objective; ``last``: of this step, on this rank."""
        if part.requires_grad:  # not so when every response is empty
            part.backward()  # type: ignore[no-untyped-call]

    def step(self, check: Check) -> float:
        """Clip and step; returns the gradient's norm before clipping."""
        if self._ranks.size > 1:
            for one in self._parameters:
                one.grad = torch.zeros_like(one) if one.grad is None else one.grad
            self._ranks.add_up([one.grad for one in self._parameters if one.grad is not None])
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip))
        check(norm)
        self._adam.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """What this rank holds beside the weights."""
        found = self._adam.state_dict()["state"]
        return {f"{i}.{key}": value for i, moments in found.items() for key, value in moments.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a `state` back."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": moments, "param_groups": groups})

    def close(self) -> None:
        """Free what is held."""
        self._adam.zero_grad(set_to_none=True)


def open_optimiser(model: LanguageModel, options: TrainOptions, learning_rate: float, seed: int) -> None:
    """A command: give the model an optimiser, started afresh, and each rank random numbers of its own."""
    ranks = model.ranks
    kind = ZeroOptimiser if ranks.size > 1 and ranks.zero else Optimiser
    model.optimiser = kind(model, options, learning_rate)
    torch.manual_seed(derive_seed(seed, "dropout", *([ranks.index] if ranks.index else [])))


def close_optimiser(model: LanguageModel) -> None:
    """A command: take the optimiser away."""
    model.optimiser.close()
    model.optimiser = None
    model.network.eval()


def optimiser_state(model: LanguageModel) -> list[dict[str, Tensor]]:
    """A command: states and random state of every rank, on rank 0."""
    tensors = {f"adam.{key}": value for key, value in model.optimiser.state().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(model.device)
    if model.ranks.size > 1:
        tensors = {key: value.cpu() for key, value in tensors.items()}
    return model.ranks.gather(tensors)


def load_optimiser(model: LanguageModel, *, states: list[dict[str, Tensor]] | None = None) -> None:
    """A command: put `optimiser_state` back."""
    tensors = model.ranks.scatter(states)
    adam = {key.removeprefix("adam."): value for key, value in tensors.items() if key.startswith("adam.")}
    model.optimiser.load_state(adam)
    if "random.cpu" in tensors:
        torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], model.device)
