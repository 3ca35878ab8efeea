"""What training leaves a record of, and all that changes while it runs: what a resume point must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lada.language_model import LanguageModel
from lada.optimiser import load_optimiser, optimiser_state
from lada.resume import Saved, Stateful


@dataclass(frozen=True)
class TermLoss:
    """The plain loss of a term, without weights (see `PairLoss`), at the weights of its step."""

    id: str
    partner: str
    loss: float
    chosen_log_prob: float
    rejected_log_prob: float | None


@dataclass(frozen=True)
class StepLog:
    """One optimiser step: objective and losses before the step, gradient norm before clipping."""

    step: int
    epoch: int
    objective: float
    grad_norm: float
    losses: tuple[TermLoss, ...]


@dataclass
class TrainingState:
    """Everything that changes while `lada.training.fit` runs.

    Attributes:
        memory: what the caller's hooks change.
        drawn: batches that were drawn, also those that made no step.
        logs: of the steps made.
    """

    model: LanguageModel
    memory: Stateful | None = None
    drawn: int = 0
    logs: list[StepLog] = field(default_factory=list)

    def whole(self) -> Saved:
        """All of it: training can go on from here."""
        result = self.result()
        tensors = dict(result.tensors)
        for rank, held in enumerate(self.model.ranks.call(optimiser_state, self.model)):
            tensors |= {f"rank.{rank}.{key}": value for key, value in held.items()}
        return Saved(tensors, result.values)

    def result(self) -> Saved:
        """What lasts when training is over: no optimiser, no random state."""
        tensors = {f"model.{key}": value for key, value in self.model.state().items()}
        values = {"drawn": self.drawn, "logs": [_plain(log) for log in self.logs], "memory": None}
        if self.memory is not None:
            memory = self.memory.state()
            tensors |= {f"memory.{key}": value for key, value in memory.tensors.items()}
            values["memory"] = memory.values
        return Saved(tensors, values)

    def load(self, saved: Saved) -> None:
        """Put `whole` or `result` back."""
        tensors, values = saved
        self.model.load_state(_under(tensors, "model."))
        self.drawn, self.logs = values["drawn"], [_log(one) for one in values["logs"]]
        if self.memory is not None:
            self.memory.load_state(Saved(_under(tensors, "memory."), values["memory"]))
        held = [_under(tensors, f"rank.{rank}.") for rank in range(self.model.ranks.size)]
        if any(held):
            self.model.ranks.call(load_optimiser, self.model, states=held)


def _plain(log: StepLog) -> list[Any]:
    losses = [list(vars(loss).values()) for loss in log.losses]
    return [log.step, log.epoch, log.objective, log.grad_norm, losses]


def _log(plain: list[Any]) -> StepLog:
    step, epoch, objective, grad_norm, losses = plain
    return StepLog(step, epoch, objective, grad_norm, tuple(TermLoss(*loss) for loss in losses))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
