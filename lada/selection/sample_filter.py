"""The sample filter: scores samples for selection and learns from their rewards (paper, Eqs. 8-10).

A filter belongs to one party (a client) or to one pair (a client and the server, on the server). It lives
on the CPU in float32, draws only from its own generator, and its `state` restores it bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from lada.config import Fraction, Options, Positive, Rate
from lada.errors import ModelError
from lada.selection.nets import ExploitNet, ExploreNet
from lada.selection.pool import Batch, Entry, ReplayPool, stack

Array = NDArray[np.float32]
ROWS = 4096
"""Rows of one forward pass when scoring."""
POOL_BATCHES = 8
"""Replayed mini-batches beside each fresh one in `SampleFilter.online_update`."""
EMA_DECAY = 0.5


class FilterOptions(Options):
    """Sizes and training of a filter (paper: Adam, rate 3e-4, 10 epochs).

    Choice: ``exploration_weight`` is Eq. 10's lambda under every reading of Eq. 7; where Eq. 7 is read as
    ``sigmoid_linear``, which has a lambda of its own (``mix_weight``), 0.1 is the value to set here.

    Attributes:
        learning_rate: of both networks' Adam (paper, Section VI-A).
        weight_decay: of both networks' Adam.
        epochs: passes over the pool per update (paper, Section VI-A).
        batch_size: tuples of one filter step.
        width: of every layer.
        blocks: residual blocks of each network.
        dropout: inside the blocks, while learning.
        clip_norm: largest gradient norm of a filter step.
        pool_size: tuples that are remembered; beyond it they replace each other at random.
        exploration_weight: lambda of Eq. 10.
        online: also learn after every optimiser step of the language model, see `online_update`.
        explore_label: Eq. 9's residual is taken against ExploitNet as it was when the sample was selected,
            or as it is after its own update.
    """

    learning_rate: Rate = 3e-4
    weight_decay: Rate = 1e-5
    epochs: Positive = 10
    batch_size: Positive = 64
    width: Positive = 256
    blocks: Positive = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    pool_size: Positive = 20_000
    online: bool = False
    exploration_weight: Fraction = 0.33
    explore_label: Literal["pre_update", "post_update"] = "pre_update"


class Scores(NamedTuple):
    """Eq. 10 for N samples, float32 [N] each: total = exploit + lambda * explore."""

    exploit: Array
    explore: Array
    total: Array


@dataclass(frozen=True)
class FilterTuple:
    """What the filter is taught about one sample.

    Attributes:
        features: [input_size], as scored when the sample was selected; kept in half precision.
        reward: the label (Eq. 7).
        exploit: ExploitNet's prediction when the sample was selected.
        round: with ``id`` the sample's key: taught again under the same key, it replaces itself.
        activations: [blocks * width], ExploitNet's at selection time; None: computed from ``features``
            before the filter first learns from this key, which is the same unless ``online`` updates on
            other samples came in between.
    """

    id: str
    features: NDArray[Any]
    reward: float
    exploit: float
    round: int = 0
    activations: NDArray[Any] | None = None


class SampleFilter:
    """ExploitNet, ExploreNet, their optimisers and the replay pool.

    Args:
        input_size: length of a feature vector.
        seed: of weights, shuffles, dropout and pool replacement.

    Attributes:
        reward_mean: moving average of the mean reward per `update`, None before the first; what
            ``select.center: ema`` centres on. Choice: each update counts half.
    """

    def __init__(self, input_size: int, options: FilterOptions, *, seed: int) -> None:
        self.options = options
        self.input_size = input_size
        self.generator = torch.Generator().manual_seed(seed)
        sizes: dict[str, Any] = {"width": options.width, "blocks": options.blocks}
        sizes |= {"dropout": options.dropout, "generator": self.generator}
        self.exploit_net = ExploitNet(input_size, **sizes)
        self.explore_net = ExploreNet(options.blocks * options.width, **sizes)
        self.pool = ReplayPool(options.pool_size, self.generator)
        self.reward_mean: float | None = None
        self._adams = {
            name: torch.optim.Adam(
                net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
            )
            for name, net in self._nets().items()
        }

    # -- Eq. 10

    def score(self, features: Array) -> Scores:
        """Predicted rewards of samples with ``features`` [N, input_size]; changes nothing."""
        parts = []
        with torch.no_grad():
            for rows in torch.split(torch.as_tensor(features, dtype=torch.float32), ROWS):
                exploit, activations = self.exploit_net(rows)
                parts.append(torch.stack([exploit, self.explore_net(activations)]))
        joined = torch.cat(parts, dim=1).numpy() if parts else np.zeros((2, 0), dtype=np.float32)
        exploit_scores, explore_scores = joined[0], joined[1]
        weight = np.float32(self.options.exploration_weight)
        return Scores(exploit_scores, explore_scores, exploit_scores + weight * explore_scores)

    def activations(self, features: Array) -> Array:
        """ExploitNet's block activations [N, blocks * width], ExploreNet's input, as they are now."""
        with torch.no_grad():
            _, found = self.exploit_net(torch.as_tensor(features, dtype=torch.float32))
        return np.asarray(found.numpy(), dtype=np.float32)

    # -- Eqs. 8 and 9

    def update(self, tuples: Sequence[FilterTuple]) -> dict[str, float]:
        """Learn from new tuples and the pool: ``epochs`` passes for ExploitNet, then for ExploreNet.

        Without new tuples it learns from the pool alone (after `relabel`), with an empty pool nothing.

        Returns:
            Mean squared errors of the last pass, ``exploit_loss`` and ``explore_loss``, and ``num_tuples``.
        """
        entries = self._admit(tuples)
        if not entries:
            return {"num_tuples": 0}
        batch, options = stack(entries), self.options
        found = {"num_tuples": float(len(batch))}
        for _ in range(options.epochs):
            found["exploit_loss"] = self._pass_exploit(self._shuffled(batch))
        batch = self._for_explore(batch)
        for _ in range(options.epochs):
            found["explore_loss"] = self._pass_explore(self._shuffled(batch))
        return found

    def online_update(self, tuples: Sequence[FilterTuple]) -> None:
        """Learn from one optimiser step's tuples, once, with 8 replayed mini-batches; only if ``online``."""
        if not self.options.online or not tuples:
            return
        replay = list(self.pool.entries)
        fresh = self._entries(tuples)
        picks = [fresh, *self._replayed(replay)]
        batches = [stack(entries) for entries in picks]
        self._pass_exploit(batches)
        self._pass_explore([self._for_explore(batch) for batch in batches])
        for entry in fresh:
            self.pool.add(entry)

    def relabel(self, sample_id: str, reward: float, *, round: int = 0) -> bool:
        """Correct a taught sample's reward once its round gain is known; False if the pool lost it."""
        return self.pool.relabel((round, sample_id), reward)

    def _admit(self, tuples: Sequence[FilterTuple]) -> list[Entry]:
        """The pool with new entries in it, and those that found no place in it."""
        fresh = self._entries(tuples)
        for entry in fresh:
            self.pool.add(entry)
        held = {entry.key for entry in self.pool.entries}
        if fresh:
            mean = float(np.mean([entry.reward for entry in fresh]))
            old = mean if self.reward_mean is None else self.reward_mean
            self.reward_mean = EMA_DECAY * old + (1 - EMA_DECAY) * mean
        return self.pool.entries + [entry for entry in fresh if entry.key not in held]

    def _entries(self, tuples: Sequence[FilterTuple]) -> list[Entry]:
        if not tuples:
            return []
        features = torch.stack([torch.as_tensor(item.features).half() for item in tuples])
        with torch.no_grad():
            _, now = self.exploit_net(features.float())
        entries = []
        for i, item in enumerate(tuples):
            assert np.isfinite(item.reward) and np.isfinite(item.exploit), f"{item.id}: not a number"
            key = (item.round, item.id)
            taught = self.pool.find(key)
            kept = now[i] if taught is None else taught.activations
            if item.activations is not None:
                kept = torch.as_tensor(item.activations)
            entries.append(Entry(key, features[i], kept.half(), item.reward, item.exploit))
        assert len({entry.key for entry in entries}) == len(entries), "a sample is taught once a round"
        return entries

    def _for_explore(self, batch: Batch) -> Batch:
        """Inputs and reference predictions of Eq. 9: the stored ones, or ExploitNet's of now."""
        if self.options.explore_label == "pre_update":
            return batch
        with torch.no_grad():
            exploit, activations = self.exploit_net(batch.features)
        return Batch(batch.features, activations, batch.reward, exploit)

    def _shuffled(self, batch: Batch) -> Iterator[Batch]:
        order = torch.randperm(len(batch), generator=self.generator)
        return (batch.rows(index) for index in torch.split(order, self.options.batch_size))

    def _replayed(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        size = self.options.batch_size
        order = torch.randperm(len(entries), generator=self.generator)[: POOL_BATCHES * size]
        return [[entries[i] for i in index.tolist()] for index in torch.split(order, size) if len(index)]

    def _pass_exploit(self, batches: Iterator[Batch] | Sequence[Batch]) -> float:
        """One pass of Eq. 8; mean squared error before each step."""
        return self._descend(
            "exploit",
            ((self.exploit_net(batch.features, self.generator)[0], batch.reward) for batch in batches),
        )

    def _pass_explore(self, batches: Iterator[Batch] | Sequence[Batch]) -> float:
        """One pass of Eq. 9: the label is the signed error of ExploitNet."""
        return self._descend(
            "explore",
            (
                (self.explore_net(batch.activations, self.generator), batch.reward - batch.exploit)
                for batch in batches
            ),
        )

    def _descend(self, name: str, pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
        adam, net = self._adams[name], self._nets()[name]
        total, rows = 0.0, 0
        for prediction, label in pairs:
            loss = nn.functional.mse_loss(prediction, label)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), self.options.clip_norm)
            adam.step()
            total, rows = total + float(loss.detach()) * len(label), rows + len(label)
        return total / rows

    # -- state

    def state(self) -> dict[str, Tensor]:
        """Weights, optimisers, pool and random state as flat named tensors, as safetensors takes them."""
        found = {f"pool.{key}": value for key, value in self.pool.state().items()}
        for name, net in self._nets().items():
            found |= {f"{name}.{key}": value.detach().clone() for key, value in net.state_dict().items()}
            for i, moments in self._adams[name].state_dict()["state"].items():
                found |= {f"adam.{name}.{i}.{key}": value.clone() for key, value in moments.items()}
        found["random"] = self.generator.get_state()
        mean = [] if self.reward_mean is None else [self.reward_mean]
        found["reward_mean"] = torch.tensor(mean, dtype=torch.float64)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` back, of a filter with the same sizes.

        Raises:
            ModelError: when it is of a filter with other sizes or not a filter's at all.
        """
        try:
            for name, net in self._nets().items():
                net.load_state_dict({key: value.clone() for key, value in _under(state, f"{name}.").items()})
                moments: dict[int, dict[str, Tensor]] = {}
                for key, value in _under(state, f"adam.{name}.").items():
                    index, _, moment = key.partition(".")
                    moments.setdefault(int(index), {})[moment] = value.clone()
                groups = self._adams[name].state_dict()["param_groups"]
                self._adams[name].load_state_dict({"state": moments, "param_groups": groups})
            self.pool.load(_under(state, "pool."))
            self.generator.set_state(state["random"].clone())
            self.reward_mean = next(iter(state["reward_mean"].tolist()), None)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(f"not a state of this filter: {str(error).strip()[:300]}") from error

    def _nets(self) -> dict[str, nn.Module]:
        return {"exploit": self.exploit_net, "explore": self.explore_net}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
