"""Data allocation of one pair (a party and one partner): filter, selection, rewards, round after round.

A client has one allocation, with the server; the server has one per client (paper, Section IV-B; the 2K
filters of Algorithm 1). Its state is committed with the party's and restored in the next stage.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from lada.config import Options, derive_seed
from lada.selection.features import FeatureOptions, SampleHistory, history_features
from lada.selection.prototypes import ColdOptions, cold_start
from lada.selection.rewards import (
    RewardOptions,
    batch_gains,
    entry_exit_gains,
    likelihood_gains,
    round_gain,
    sample_rewards,
    standardised_changes,
)
from lada.selection.sample_filter import FilterOptions, FilterTuple, SampleFilter
from lada.selection.select import SelectOptions, refine, select

Array = NDArray[np.float32]
SELECTION_ARRAYS = ("features", "exploit", "explore", "total", "activations")
Losses = dict[str, float]


class AllocationOptions(Options):
    """Everything that decides which samples a party learns from."""

    reward: RewardOptions = RewardOptions()
    filter: FilterOptions = FilterOptions()
    select: SelectOptions = SelectOptions()
    cold: ColdOptions = ColdOptions()
    features: FeatureOptions = FeatureOptions()

    @model_validator(mode="after")
    def _online(self) -> AllocationOptions:
        if self.filter.online and self.reward.resolved().batch_pairing != "next_batch":
            raise ValueError(
                "filter.online needs reward.batch_pairing next_batch: no other gain is known during the round"
            )
        return self


@dataclass
class Selection:
    """The ids of one round and what the filter saw and said of them.

    Attributes:
        by: ``prototypes`` (round 1), ``filter``, ``all``, ``random`` or ``oracle``.
        features: [n, F] rows as ``ids``; exploit, explore, total: Eq. 10, [n].
        activations: [n, A] of ExploitNet, ExploreNet's input (Eq. 9), as they were when it selected.
    """

    ids: list[str]
    by: str
    features: Array
    exploit: Array
    explore: Array
    total: Array
    activations: Array

    def row(self, sample: str) -> int:
        """Row of an id."""
        return self.ids.index(sample)


@dataclass
class RoundLosses:
    """What training in one round left of a pair's losses.

    Attributes:
        entry: id -> loss before the round's first step. steps: per optimiser step, id -> loss at the
            weights before the step. exit: id -> loss after the last step, where it was measured.
        after: per step, the batch's losses after the step (``same_batch`` only).
        likelihood: id -> mean token log-probability of the preferred text after training (nats).
    """

    entry: Losses
    steps: list[Losses]
    exit: Losses | None = None
    after: list[Losses] | None = None
    likelihood: Losses | None = None


@dataclass
class _Pending:
    """A round whose round-level gain becomes known one round later (``next_set``)."""

    round: int
    entry: Losses
    gains: Losses
    recent: list[float]
    changes: Losses


@dataclass
class Rewarded:
    """What a round earned: per id the gains and the reward that the filter was taught."""

    round_gain: float | None
    gains: Losses
    rewards: Losses


@dataclass
class Allocation:
    """The filter of one pair and its bookkeeping.

    Args:
        ids: of the public set, in the order of feature rows.
        seed: of filter, clusters and draws.
        partner: the pair's other party; draws differ from pair to pair, clusters do not.
    """

    ids: Sequence[str]
    options: AllocationOptions
    seed: int
    partner: str = ""
    sample_filter: SampleFilter | None = None
    selection: Selection | None = None
    used: set[str] = field(default_factory=set)
    recent: list[float] = field(default_factory=list)
    history: dict[str, SampleHistory] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    _pending: _Pending | None = None
    _last_step: Losses | None = None

    # -- choosing

    def choose(self, prompt_features: Array, *, round: int, count: int | None = None) -> Selection:
        """Select the samples of a round: by prototypes in round 1, by the filter afterwards.

        Args:
            prompt_features: [N, F] of the party's current model, rows as ``ids``.
            count: how many mode ``random`` draws, in place of ``select.share``.
        """
        extra = history_features(self.ids, self.history, self.options.features)
        features: Array = np.concatenate([prompt_features, extra], axis=1)
        if self.sample_filter is None:
            self.sample_filter = SampleFilter(features.shape[1], self.options.filter, seed=self.seed)
        scores = self.sample_filter.score(features)
        options = self.options.select
        by: str = options.mode
        if options.mode == "filter" and round == 1:
            by = "prototypes"
            chosen = cold_start(self.ids, prompt_features, self.options.cold, seed=self.seed)
        else:
            chosen = select(
                (self.ids, scores.total),
                options,
                seed=derive_seed(self.seed, self.partner, round),
                centre=self.sample_filter.reward_mean,
                used=self.used,
                count=count,
            )
        place = {name: row for row, name in enumerate(self.ids)}
        rows = [place[name] for name in chosen]
        self.used |= set(chosen) if by != "oracle" else set()
        self.selection = Selection(
            chosen,
            by,
            features[rows],
            scores.exploit[rows],
            scores.explore[rows],
            scores.total[rows],
            self.sample_filter.activations(features[rows]),
        )
        return self.selection

    def narrow(self, right: Collection[str], *, round: int, count: int | None = None) -> Selection:
        """Mode ``oracle``, when the texts asked for are here: draw from those that are right.

        Args:
            right: ids whose partner's text gives the sealed answer.
            count: how many, in place of ``select.share`` of all ids.
        """
        whole = self.selection
        assert whole is not None and whole.by == "oracle"
        chosen = select(
            (whole.ids, whole.total),
            self.options.select,
            seed=derive_seed(self.seed, self.partner, round),
            used=self.used,
            count=count,
            right=right,
        )
        rows = [whole.row(name) for name in chosen]
        arrays = {name: getattr(whole, name)[rows] for name in SELECTION_ARRAYS}
        self.used |= set(chosen)
        self.selection = Selection(chosen, whole.by, **arrays)
        return self.selection

    def keep(self, batch: Sequence[str]) -> set[str]:
        """What is left of a batch after the filter, as it is now, looked at it again (``select.refine``)."""
        if not self.options.select.refine or self.sample_filter is None or self.selection is None:
            return set(batch)
        if self.selection.by != "filter":
            return set(batch)
        rows = [self.selection.row(name) for name in batch]
        scores = self.sample_filter.score(self.selection.features[rows]).total.tolist()
        centre = self.sample_filter.reward_mean
        return set(refine(dict(zip(batch, scores, strict=True)), self.options.select, centre=centre))

    def weight(self, sample: str) -> float | None:
        """Predicted reward of a selected sample (Eq. 4's importance); None where no filter chose it."""
        if self.selection is None or self.selection.by != "filter":
            return None
        return float(self.selection.total[self.selection.row(sample)])

    # -- learning

    def begin_round(self, entry: Losses) -> float | None:
        """The losses before the round's first step: they close the previous round's gain (``next_set``).

        Returns:
            That round-level gain, or None where nothing was waiting for it.
        """
        pending, self._pending, self._last_step = self._pending, None, None
        if pending is None or not self._learns:
            return None
        gain = round_gain(pending.entry, self.options.reward, next_entry=entry)
        if gain is None:
            return None
        rewards = sample_rewards(
            pending.gains,
            self.options.reward,
            round_gain=gain,
            recent=pending.recent,
            changes=pending.changes,
        )
        assert self.sample_filter is not None
        for name, reward in rewards.items():
            self.sample_filter.relabel(name, reward, round=pending.round)
        self.sample_filter.update([])
        return gain

    def after_step(self, losses: Losses, *, round: int) -> None:
        """With ``filter.online``: teach the previous batch's gain, which this batch's losses make known."""
        if not losses:
            return
        previous, self._last_step = self._last_step, losses
        if not self.options.filter.online or not previous or not self._learns:
            return
        gains = batch_gains([previous, losses], self.options.reward)
        rewards = sample_rewards(gains, self.options.reward, recent=self.recent)
        assert self.sample_filter is not None
        self.sample_filter.online_update(self._tuples(rewards, round))

    def end_round(self, losses: RoundLosses, *, round: int) -> Rewarded:
        """Turn the round's losses into rewards (Eqs. 5-7) and train the filter on them (Eqs. 8, 9)."""
        options = self.options.reward
        if options.profile == "likelihood":
            gains = likelihood_gains(losses.likelihood or {})
        else:
            gains = batch_gains(
                losses.steps, options, entry=losses.entry, exit=losses.exit, after=losses.after
            )
        known = round_gain(losses.entry, options, exit=losses.exit)
        changes = standardised_changes(losses.entry, losses.exit or {})
        rewards = sample_rewards(gains, options, round_gain=known, recent=self.recent, changes=changes)
        waits = options.resolved().round_pairing == "next_set" and options.profile != "likelihood"
        if waits:
            self._pending = _Pending(round, losses.entry, gains, list(self.recent), changes)
        self.recent = [*self.recent, *gains.values()][-64:]
        if rewards and self._learns:
            assert self.sample_filter is not None
            self.sample_filter.update(self._tuples(rewards, round))
        return Rewarded(known, gains, rewards)

    def round_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `after_step` changes, as tensors and JSON values."""
        changes = self.sample_filter if self.options.filter.online else None
        return {} if changes is None else changes.state(), {"last_step": self._last_step}

    def load_round_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put a `round_state` back."""
        self._last_step = values["last_step"]
        if tensors:
            assert self.sample_filter is not None
            self.sample_filter.load(tensors)

    @property
    def _learns(self) -> bool:
        return self.options.select.mode == "filter" and self.selection is not None

    def _tuples(self, rewards: Losses, round: int) -> list[FilterTuple]:
        assert self.selection is not None
        found = []
        for name, reward in rewards.items():
            row = self.selection.row(name)
            exploit = float(self.selection.exploit[row])
            found.append(
                FilterTuple(
                    name,
                    self.selection.features[row],
                    reward,
                    exploit,
                    round=round,
                    activations=self.selection.activations[row],
                )
            )
        return found

    # -- state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that restore this allocation bit for bit."""
        tensors = {} if self.sample_filter is None else self.sample_filter.state()
        if self.selection is not None:
            for name in SELECTION_ARRAYS:
                tensors[f"selection.{name}"] = torch.from_numpy(getattr(self.selection, name).copy())
        pending = self._pending
        values = {
            "ids": None if self.selection is None else self.selection.ids,
            "by": None if self.selection is None else self.selection.by,
            "used": sorted(self.used),
            "recent": self.recent,
            "history": {name: vars(past) for name, past in self.history.items()},
            "pending": None if pending is None else vars(pending),
        }
        return tensors, json.loads(json.dumps(values))

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put a `state` back."""
        self.used, self.recent = set(values["used"]), list(values["recent"])
        self.history = {name: SampleHistory(**past) for name, past in values["history"].items()}
        self._pending = None if values["pending"] is None else _Pending(**values["pending"])
        if values["ids"] is None:
            return
        parts = {name: tensors[f"selection.{name}"].numpy() for name in SELECTION_ARRAYS}
        self.selection = Selection(list(values["ids"]), values["by"], **parts)
        size = self.selection.features.shape[1]
        self.sample_filter = SampleFilter(size, self.options.filter, seed=self.seed)
        self.sample_filter.load({k: v for k, v in tensors.items() if not k.startswith("selection.")})


def paired_gains(losses: RoundLosses, options: RewardOptions) -> Losses:
    """Each sample's own gain over the round, for diagnostics: to the exit pass, else to the last visit."""
    if losses.exit is not None:
        return entry_exit_gains(losses.entry, losses.exit, options)
    last: Losses = {}
    for step in losses.steps:
        last |= step
    return entry_exit_gains(losses.entry, last, options)
