"""Rewards of selected samples from their losses: pure float64 arithmetic (paper, Eqs. 5-7).

Losses are per-pair preference losses in nats. A gain is positive where the loss fell; a reward is a gain
squashed to (0, 1), 0.5 for "no change". Which losses are compared is the pairing: the paper compares
different samples one batch (one round) apart; the ``paired`` profile compares the same samples before and
after (method page, sections 2.5-2.8).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from lada.config import Fraction, Options

K = TypeVar("K", bound=Hashable)
Norm = Literal["max", "pre", "sum", "none"]
Mix = Literal["convex", "sigmoid_linear", "three_term"]
Gain = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AUTO_WINDOW = 64
MAX_EXPONENT = 700.0
"""exp() of more overflows float64."""


class RewardOptions(Options):
    """How losses become rewards. A None takes the value of ``profile``, see `resolved`.

    Attributes:
        profile: ``paper``, ``paired``, or ``likelihood`` (an addition to the paper: the reward is the
            preferred text's log-likelihood per token after training, centred in the round; the pairings
            then serve diagnostics only).
        round_reward_weight: alpha of Eq. 7, the weight of the round gain.
        mix_weight: lambda where Eq. 7 is read to hold one: weight of the batch gain (``sigmoid_linear``) or
            of both gains against the sample's own loss change (``three_term``); ``convex`` has none.
        norm: what divides A - B in Eqs. 5 and 6: the larger of both, A, their sum, or nothing.
        agg: the aggregate of a set: mean of exp(loss), exp of the mean loss, or sum of exp(loss).
        gain: factor on gains before the sigmoid; ``auto`` is `auto_gain`.
        clip: losses are clipped here before exp.
    """

    profile: Literal["paper", "paired", "likelihood"] = "paper"
    round_reward_weight: Fraction = 0.33
    mix_weight: Fraction = 0.33
    norm: Norm = "max"
    agg: Literal["mean_exp", "exp_mean", "sum"] = "mean_exp"
    mix: Mix = "convex"
    round_pairing: Literal["next_set", "same_set"] | None = None
    batch_pairing: Literal["next_batch", "same_batch", "epoch_delta"] | None = None
    gain: Gain | Literal["auto"] | None = None
    clip: Gain = 10.0

    def resolved(self) -> RewardOptions:
        """These options with the profile's value in place of each None."""
        paper = self.profile == "paper"
        return self.model_copy(
            update={
                "round_pairing": self.round_pairing or ("next_set" if paper else "same_set"),
                "batch_pairing": self.batch_pairing or ("next_batch" if paper else "epoch_delta"),
                "gain": self.gain or (1.0 if paper else "auto"),
            }
        )

    def next_batch(self) -> RewardOptions:
        """These options with the paper's pairing of batches, for diagnostics beside any profile."""
        return self.model_copy(update={"batch_pairing": "next_batch"})


PAPER = RewardOptions()


# -- Eqs. 5 and 6


def log_mean_exp_loss(losses: Iterable[float], options: RewardOptions = PAPER) -> float:
    """Log of the aggregate M of a set of losses (Eq. 5), at least one and none NaN."""
    values = np.minimum(np.fromiter(losses, dtype=np.float64), options.clip)
    assert values.size and not np.isnan(values).any(), "a set's losses must be there and be numbers"
    if options.agg == "exp_mean":
        return float(values.mean())
    top = values.max()
    total = float(top + np.log(np.exp(values - top).sum()))
    return total if options.agg == "sum" else total - float(np.log(values.size))


def relative_gain(log_a: ArrayLike, log_b: ArrayLike, norm: Norm = "max") -> NDArray[np.float64]:
    """Gain from aggregate A (before) to B (after), given their logs, elementwise (Eqs. 5 and 6).

    ``max``: (A-B)/max(A,B) in (-1,1); ``pre``: (A-B)/A below 1; ``sum``: (A-B)/(A+B) in (-1,1);
    ``none``: A-B. Positive where the loss fell. Nothing overflows.
    """
    a, b = np.asarray(log_a, dtype=np.float64), np.asarray(log_b, dtype=np.float64)
    if norm == "max":
        return np.asarray(np.sign(a - b) * -np.expm1(-np.abs(a - b)))
    if norm == "pre":
        return np.asarray(-np.expm1(np.minimum(b - a, MAX_EXPONENT)))
    if norm == "sum":
        return np.asarray(np.tanh((a - b) / 2))
    return np.asarray(np.exp(np.minimum(a, MAX_EXPONENT)) - np.exp(np.minimum(b, MAX_EXPONENT)))


def set_gain(before: Iterable[float], after: Iterable[float], options: RewardOptions = PAPER) -> float:
    """Gain between two sets of losses: one number of Eq. 5 or 6."""
    a, b = log_mean_exp_loss(before, options), log_mean_exp_loss(after, options)
    return float(relative_gain(a, b, options.norm))


def round_gain(
    entry: Mapping[K, float],
    options: RewardOptions = PAPER,
    *,
    exit: Mapping[K, float] | None = None,
    next_entry: Mapping[K, float] | None = None,
) -> float | None:
    """Round-level gain of a selection (Eq. 5), or None while it cannot be observed yet.

    Args:
        entry: losses of the set selected for round t, before round t's first update.
        exit: losses of the same set after round t (``same_set``).
        next_entry: losses of round t+1's set before its first update (``next_set``; one round late).
    """
    after = next_entry if options.resolved().round_pairing == "next_set" else exit
    return set_gain(entry.values(), after.values(), options) if entry and after else None


def batch_gains(
    steps: Sequence[Mapping[K, float]],
    options: RewardOptions = PAPER,
    *,
    entry: Mapping[K, float] | None = None,
    exit: Mapping[K, float] | None = None,
    after: Sequence[Mapping[K, float]] | None = None,
) -> dict[K, float]:
    """Batch-level gain of each trained sample (Eq. 6), by the pairing of ``options``.

    Args:
        steps: the round's optimiser steps in order over all epochs; each maps the ids of its batch to
            their losses at the parameters before the step. On the server: only the items of one pair,
            steps without any are left out.
        entry, exit: losses before the first and after the last step (``epoch_delta``).
        after: losses of each step's batch after the step (``same_batch``).

    Returns:
        Id to gain, the mean over an id's visits; ids without an observable gain are not in it.
    """
    pairing = options.resolved().batch_pairing
    if pairing == "next_batch":
        return _next_batch(steps, options)
    if pairing == "same_batch":
        assert after is not None and len(after) == len(steps), "same_batch needs a re-forward of each step"
        return _same_batch(steps, after, options)
    visits = [step for step in (entry, *steps, exit) if step]
    return epoch_delta_gains(visits, options)


def _next_batch(steps: Sequence[Mapping[K, float]], options: RewardOptions) -> dict[K, float]:
    """The lag rule: batch b-1 at theta^(b-1) against batch b at theta^b, credited to the ids of batch b-1.

    Choice: the lag crosses epochs but not rounds, and the round's last batch earns nothing (closing it
    would need a forward pass that the paper does not have).
    """
    kept = [step for step in steps if step]
    found: dict[K, list[float]] = {}
    for batch, following in itertools.pairwise(kept):
        gain = set_gain(batch.values(), following.values(), options)
        for key in batch:
            found.setdefault(key, []).append(gain)
    return _means(found)


def _same_batch(
    steps: Sequence[Mapping[K, float]], after: Sequence[Mapping[K, float]], options: RewardOptions
) -> dict[K, float]:
    found: dict[K, list[float]] = {}
    for batch, again in zip(steps, after, strict=True):
        assert batch.keys() == again.keys(), "a step's re-forward must hold the step's ids"
        gain = set_gain(batch.values(), again.values(), options) if batch else 0.0
        for key in batch:
            found.setdefault(key, []).append(gain)
    return _means(found)


def epoch_delta_gains(visits: Sequence[Mapping[K, float]], options: RewardOptions = PAPER) -> dict[K, float]:
    """Each sample's own gain from one visit to its next, mean over its visits: no other sample enters.

    Choice: the entry and exit passes count as visits, so that one epoch is enough.
    """
    last: dict[K, float] = {}
    found: dict[K, list[float]] = {}
    for step in visits:
        for key, loss in step.items():
            if key in last:
                found.setdefault(key, []).append(set_gain([last[key]], [loss], options))
            last[key] = loss
    return _means(found)


def entry_exit_gains(
    entry: Mapping[K, float], exit: Mapping[K, float], options: RewardOptions = PAPER
) -> dict[K, float]:
    """Each sample's own gain over the whole round: what a reward is compared with in diagnostics."""
    return epoch_delta_gains([entry, {key: exit[key] for key in entry if key in exit}], options)


def likelihood_gains(log_likelihoods: Mapping[K, float]) -> dict[K, float]:
    """Log-likelihoods per token (nats) centred in the round: the ``likelihood`` profile's gains."""
    mean = float(np.mean(list(log_likelihoods.values()))) if log_likelihoods else 0.0
    return {key: value - mean for key, value in log_likelihoods.items()}


def _means(found: Mapping[K, list[float]]) -> dict[K, float]:
    return {key: float(np.mean(values)) for key, values in found.items()}


# -- Eq. 7


def combine(
    round_gain: float | None,
    batch_gain: float,
    alpha: float,
    *,
    mix: Mix = "convex",
    gain: float = 1.0,
    mix_weight: float = 0.33,
    sample_change: float = 0.0,
) -> float:
    """Final reward in (0, 1) of one sample (Eq. 7); no gain at all is exactly 0.5.

    ``convex``: alpha s(r_R) + (1 - alpha) s(r_B) with the sigmoid s (method page, 2.7, H2).
    ``sigmoid_linear``: s(alpha r_R + lambda r_B) (H1). ``three_term``: lambda times the convex form plus
    (1 - lambda) s(``sample_change``), the sample's own standardised loss change (H3).

    Choice: a round gain that is not known yet (None) counts as 0, a neutral 0.5 in the convex form.

    Args:
        alpha: weight of the round gain; ``mix_weight`` is lambda.
        gain: factor on both gains before the sigmoid.
    """
    of_round, of_batch = gain * (round_gain or 0.0), gain * batch_gain
    if mix == "sigmoid_linear":
        return 0.5 + _above_half(alpha * of_round + mix_weight * of_batch)
    above = alpha * _above_half(of_round) + (1 - alpha) * _above_half(of_batch)
    if mix == "three_term":
        above = mix_weight * above + (1 - mix_weight) * _above_half(sample_change)
    return 0.5 + above


def auto_gain(recent: Sequence[float]) -> float:
    """1 / (2 std) of the last 64 raw gains, between 1 and 50 (method page, 2.7).

    Choice: 1 while there are fewer than two gains; the batch-level gains set the factor of both levels.
    """
    if len(recent) < 2:
        return 1.0
    std = float(np.std(np.asarray(recent[-AUTO_WINDOW:], dtype=np.float64)))
    return 50.0 if std == 0 else float(np.clip(1 / (2 * std), 1.0, 50.0))


def standardised_changes(entry: Mapping[K, float], exit: Mapping[K, float]) -> dict[K, float]:
    """Fall of each sample's loss over the round, centred and scaled over the set (``three_term``)."""
    falls = {key: entry[key] - exit[key] for key in entry if key in exit}
    values = np.asarray(list(falls.values()), dtype=np.float64)
    std = float(values.std()) if len(falls) else 0.0
    return {key: (fall - float(values.mean())) / std if std else 0.0 for key, fall in falls.items()}


def sample_rewards(
    gains: Mapping[K, float],
    options: RewardOptions = PAPER,
    *,
    round_gain: float | None = None,
    recent: Sequence[float] = (),
    changes: Mapping[K, float] | None = None,
) -> dict[K, float]:
    """The reward of every sample that has a batch-level gain (Eq. 7).

    Args:
        gains: `batch_gains`, or `likelihood_gains` under that profile.
        round_gain: common to all; ignored by the ``likelihood`` profile, whose gains are centred.
        recent: raw gains of earlier rounds, oldest first, for gain ``auto``; these gains come after them.
        changes: `standardised_changes`, for ``three_term``.
    """
    factor = options.resolved().gain
    number = auto_gain([*recent, *gains.values()]) if factor == "auto" else factor
    assert isinstance(number, float | int)
    return {
        key: combine(
            None if options.profile == "likelihood" else round_gain,
            value,
            options.round_reward_weight,
            mix=options.mix,
            gain=number,
            mix_weight=options.mix_weight,
            sample_change=(changes or {}).get(key, 0.0),
        )
        for key, value in gains.items()
    }


def _above_half(x: float) -> float:
    """sigmoid(x) - 0.5, odd in x to the last bit and strictly inside (-0.5, 0.5)."""
    return 0.5 * float(np.tanh(np.clip(x, -30.0, 30.0) / 2))
