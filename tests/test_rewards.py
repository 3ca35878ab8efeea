"""Rewards: signs, bounds and invariances of Eqs. 5-7, and who is credited with which losses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lada.layers import validate
from lada.selection.rewards import (
    RewardOptions,
    auto_gain,
    batch_gains,
    combine,
    entry_exit_gains,
    epoch_delta_gains,
    likelihood_gains,
    log_mean_exp_loss,
    relative_gain,
    round_gain,
    sample_rewards,
    set_gain,
    standardised_changes,
)

LOSSES = st.lists(st.floats(0.0, 9.0), min_size=1, max_size=20)
NORMS = ["max", "pre", "sum", "none"]
STEPS = [{"a": 1.0, "b": 0.8}, {"c": 0.5, "d": 0.9}, {"a": 0.6, "b": 0.9}, {"c": 0.4, "d": 0.3}]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_mean(losses: list[float]) -> float:
    return float(np.mean(np.exp(losses)))


# -- Eqs. 5 and 6


@given(LOSSES, LOSSES)
def test_stable_gain_equals_the_written_formula(before: list[float], after: list[float]) -> None:
    a, b = naive_mean(before), naive_mean(after)
    expected = {"max": (a - b) / max(a, b), "pre": (a - b) / a, "sum": (a - b) / (a + b), "none": a - b}
    for norm in NORMS:
        found = set_gain(before, after, RewardOptions(norm=norm))
        assert found == pytest.approx(expected[norm], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("agg", ["mean_exp", "exp_mean", "sum"])
def test_a_falling_loss_is_a_positive_gain(norm: str, agg: str) -> None:
    options = RewardOptions(norm=norm, agg=agg)
    assert set_gain([1.0, 0.7], [0.9, 0.6], options) > 0
    assert set_gain([0.9, 0.6], [1.0, 0.7], options) < 0
    assert set_gain([1.0, 0.7], [0.7, 1.0], options) == 0


def test_negative_losses_keep_the_sign() -> None:
    # Dividing by the larger of two negative numbers flips the sign; logs of positive sums cannot.
    assert set_gain([-1.0], [-2.0]) > 0 > set_gain([-2.0], [-1.0])


@pytest.mark.parametrize("norm", ["max", "sum"])
@given(LOSSES, LOSSES)
def test_gain_is_antisymmetric(norm: str, before: list[float], after: list[float]) -> None:
    options = RewardOptions(norm=norm)
    assert set_gain(before, after, options) == -set_gain(after, before, options)


@given(LOSSES, LOSSES, st.integers(2, 4))
def test_duplicating_samples_changes_a_sum_but_no_mean(
    before: list[float], after: list[float], copies: int
) -> None:
    for agg in ("mean_exp", "exp_mean"):
        options = RewardOptions(agg=agg)
        expected = set_gain(before, after, options)
        assert set_gain(before * copies, after, options) == pytest.approx(expected, abs=1e-12)
    summed = RewardOptions(agg="sum", norm="sum")
    moved = set_gain(before * copies, after, summed) - set_gain(before, after, summed)
    assert moved > 1e-6, "a sum counts samples"


def test_no_count_drift_under_mean_but_under_sum() -> None:
    """3 % better while the set grows from 400 to 500 (method page, 2.5)."""
    before, after = [math.log(2.0)] * 400, [math.log(2.0 * 0.97)] * 500
    assert set_gain(before, after) == pytest.approx(0.03)
    assert set_gain(before, after, RewardOptions(agg="sum")) == pytest.approx(-0.175, abs=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_huge_losses_are_clipped_and_do_not_overflow(norm: str) -> None:
    options = RewardOptions(norm=norm)
    assert log_mean_exp_loss([1e3], options) == 10.0
    assert set_gain([1e3], [11.0], options) == 0.0
    free = RewardOptions(norm=norm, clip=1e6)
    for before, after in (([1e3], [0.0]), ([0.0], [1e3]), ([math.inf], [0.5])):
        assert math.isfinite(set_gain(before, after, free))
        assert 0 < combine(set_gain(before, after, free), set_gain(before, after, free), 0.5) < 1


def test_a_set_without_losses_or_with_nan_is_refused() -> None:
    with pytest.raises(AssertionError, match="losses"):
        log_mean_exp_loss([])
    with pytest.raises(AssertionError, match="numbers"):
        log_mean_exp_loss([0.5, math.nan])


def test_relative_gain_takes_arrays() -> None:
    found = relative_gain(np.log([2.0, 2.0, 1.0]), np.log([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(found, [0.5, 0.0, -0.5])


# -- Eq. 7

MIXES = ["convex", "sigmoid_linear"]


@pytest.mark.parametrize("mix", MIXES)
@given(st.floats(0.01, 1.0), st.floats(0.01, 0.99), st.floats(0.1, 50.0))
def test_reward_is_half_at_no_gain_and_on_the_gains_side_else(
    mix: str, size: float, alpha: float, gain: float
) -> None:
    assert combine(0.0, 0.0, alpha, mix=mix, gain=gain) == 0.5
    up, down = (combine(r, r, alpha, mix=mix, gain=gain) for r in (size, -size))
    assert 0 < down < 0.5 < up < 1
    assert up - 0.5 == pytest.approx(0.5 - down, abs=1e-15)


@pytest.mark.parametrize("mix", [*MIXES, "three_term"])
def test_reward_falls_as_the_loss_after_rises(mix: str) -> None:
    rewards = [
        combine(r, r, 0.33, mix=mix) for b in np.linspace(0.1, 3.0, 30) for r in [set_gain([1.0], [b])]
    ]
    assert all(first > second for first, second in itertools.pairwise(rewards))


def test_convex_form_is_the_written_one_and_stays_within_its_bounds() -> None:
    expected = 0.66 * sigmoid(0.2) + 0.34 * sigmoid(-0.1)
    assert combine(0.2, -0.1, 0.66) == pytest.approx(expected, abs=1e-15)
    assert combine(1.0, 1.0, 0.4) == pytest.approx(0.7311, abs=1e-4)  # max-norm gains end at 1
    assert combine(-1.0, -1.0, 0.4) == pytest.approx(0.2689, abs=1e-4)


def test_other_readings_are_the_written_ones() -> None:
    linear = combine(0.2, 0.3, 0.66, mix="sigmoid_linear", mix_weight=0.5, gain=2.0)
    assert linear == pytest.approx(sigmoid(2 * (0.66 * 0.2 + 0.5 * 0.3)))
    mixed = combine(0.2, 0.3, 0.66, mix="three_term", mix_weight=0.4, sample_change=-1.5)
    convex = 0.66 * sigmoid(0.2) + 0.34 * sigmoid(0.3)
    assert mixed == pytest.approx(0.4 * convex + 0.6 * sigmoid(-1.5))


def test_unknown_round_gain_is_neutral() -> None:
    assert combine(None, 0.3, 0.33) == combine(0.0, 0.3, 0.33)


def test_weights_times_sigmoids_would_select_nothing_or_everything() -> None:
    """Why alpha s(r_R) + lambda s(r_B) is not offered (method page, H1b)."""

    def linear_sigmoid(of_round: float, of_batch: float, alpha: float, weight: float) -> float:
        return alpha * sigmoid(of_round) + weight * sigmoid(of_batch)

    assert linear_sigmoid(1.0, 1.0, 0.33, 0.33) < 0.5  # the best case is never above the threshold
    assert linear_sigmoid(0.0, 0.0, 0.66, 0.66) > 0.5  # no gain at all is always above it
    assert linear_sigmoid(0.0, 0.0, 0.66, 0.66) == pytest.approx(0.66)


# -- pairings


def test_lag_rule_credits_the_batch_before() -> None:
    """Reward of batch b-1: its loss at theta^(b-1) against batch b's at theta^b, over epoch borders."""
    gains = batch_gains(STEPS)
    first = set_gain([1.0, 0.8], [0.5, 0.9])
    second = set_gain([0.5, 0.9], [0.6, 0.9])
    third = set_gain([0.6, 0.9], [0.4, 0.3])
    expected = {"a": (first + third) / 2, "b": (first + third) / 2, "c": second, "d": second}
    assert gains == pytest.approx(expected)
    assert first > 0 > second, "c and d are easier, which is all that the paper's pairing can see"


def test_last_batch_and_unselected_ids_earn_nothing() -> None:
    assert batch_gains(STEPS[:2]).keys() == {"a", "b"}
    assert batch_gains(STEPS[:1]) == {}
    assert batch_gains([]) == {}


def test_steps_without_an_item_of_the_pair_are_skipped() -> None:
    """On the server a step may hold no pair of one client: that filter's lag runs to the next that does."""
    assert batch_gains([STEPS[0], {}, STEPS[1], {}]) == batch_gains(STEPS[:2])
    same = RewardOptions(batch_pairing="same_batch")
    assert batch_gains([{}, STEPS[0]], same, after=[{}, STEPS[0]]) == {"a": 0.0, "b": 0.0}


def test_same_batch_compares_a_batch_with_itself() -> None:
    options = RewardOptions(batch_pairing="same_batch")
    after = [{"a": 0.5, "b": 0.8}, {"c": 0.6, "d": 0.9}]
    gains = batch_gains(STEPS[:2], options, after=after)
    assert gains["a"] == gains["b"] == set_gain([1.0, 0.8], [0.5, 0.8]) > 0
    assert gains["c"] == gains["d"] == set_gain([0.5, 0.9], [0.6, 0.9]) < 0
    with pytest.raises(AssertionError, match="re-forward"):
        batch_gains(STEPS, options)


def test_epoch_delta_compares_a_sample_with_itself() -> None:
    options = RewardOptions(batch_pairing="epoch_delta")
    gains = batch_gains(STEPS, options)
    assert gains == pytest.approx(
        {key: set_gain([STEPS[i][key]], [STEPS[i + 2][key]]) for i in (0, 1) for key in STEPS[i]}
    )
    longer = batch_gains(STEPS, options, entry={"a": 1.2}, exit={"a": 0.1, "z": 3.0})
    series = [1.2, 1.0, 0.6, 0.1]
    expected = np.mean([set_gain([x], [y]) for x, y in itertools.pairwise(series)])
    assert longer["a"] == pytest.approx(float(expected))
    assert longer["b"] == gains["b"]
    assert "z" not in longer


def test_one_epoch_with_entry_and_exit_is_enough_for_paired_gains() -> None:
    entry, exit = {"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 1.5}
    gains = batch_gains([{"a": 1.0}, {"b": 1.0}], RewardOptions(profile="paired"), entry=entry, exit=exit)
    assert gains["a"] > 0 > gains["b"]
    assert entry_exit_gains(entry, exit) == epoch_delta_gains([entry, exit])
    assert entry_exit_gains(entry, exit)["a"] == set_gain([1.0], [0.5])


def test_round_gain_compares_what_the_pairing_says() -> None:
    entry, exit, following = {"a": 1.0}, {"a": 0.5}, {"b": 1.5}
    paper, paired = RewardOptions(), RewardOptions(profile="paired")
    assert round_gain(entry, paper, exit=exit, next_entry=following) == set_gain([1.0], [1.5])
    assert round_gain(entry, paired, exit=exit, next_entry=following) == set_gain([1.0], [0.5])
    assert round_gain(entry, paper, exit=exit) is None, "not known before the next round"
    assert round_gain({}, paper, next_entry=following) is None


def test_round_gain_reaches_every_sample_of_its_round_and_no_other() -> None:
    gains = batch_gains(STEPS[:2])
    early, late = sample_rewards(gains), sample_rewards(gains, round_gain=0.4)
    assert early.keys() == late.keys() == {"a", "b"}
    for key in gains:
        assert late[key] - early[key] == pytest.approx(0.33 * (sigmoid(0.4) - 0.5))


def test_likelihood_profile_rewards_the_level_within_the_round() -> None:
    gains = likelihood_gains({"a": -0.5, "b": -1.5, "c": -1.0})
    assert gains == pytest.approx({"a": 0.5, "b": -0.5, "c": 0.0})
    rewards = sample_rewards(gains, RewardOptions(profile="likelihood"), round_gain=0.9)
    assert rewards["a"] > rewards["c"] > rewards["b"]
    assert rewards["c"] == pytest.approx(0.5), "centred: a common round gain adds nothing"
    assert likelihood_gains({}) == {}


# -- options


def test_profiles_fill_what_is_not_set() -> None:
    found = {
        name: RewardOptions(profile=name).resolved().model_dump()
        for name in ("paper", "paired", "likelihood")
    }
    keys = ("round_pairing", "batch_pairing", "gain")
    assert [found["paper"][key] for key in keys] == ["next_set", "next_batch", 1.0]
    assert [found["paired"][key] for key in keys] == ["same_set", "epoch_delta", "auto"]
    assert [found["likelihood"][key] for key in keys] == ["same_set", "epoch_delta", "auto"]
    mine = RewardOptions(profile="paired", gain=20.0, batch_pairing="same_batch").resolved()
    assert (mine.gain, mine.batch_pairing, mine.round_pairing) == (20.0, "same_batch", "same_set")
    assert mine.resolved() == mine


def test_options_come_from_yaml_and_refuse_nonsense() -> None:
    assert validate(RewardOptions, {"gain": 20, "clip": 5}, {}).gain == 20
    assert validate(RewardOptions, {"gain": "auto"}, {}).gain == "auto"
    for wrong in ({"gain": 0}, {"gain": "big"}, {"round_reward_weight": 1.5}, {"mix": "linear_sigmoid"}):
        with pytest.raises(ValidationError):
            RewardOptions.model_validate(wrong)


@pytest.mark.parametrize(
    "changed",
    [
        {"profile": "paired"},
        {"profile": "likelihood"},
        {"round_reward_weight": 0.66},
        {"norm": "pre"},
        {"norm": "sum"},
        {"norm": "none"},
        {"agg": "exp_mean"},
        {"agg": "sum"},
        {"mix": "sigmoid_linear"},
        {"mix": "three_term"},
        {"mix": "sigmoid_linear", "mix_weight": 0.66},
        {"mix": "three_term", "mix_weight": 0.66},
        {"round_pairing": "same_set"},
        {"batch_pairing": "same_batch"},
        {"batch_pairing": "epoch_delta"},
        {"gain": 20.0},
        {"gain": "auto"},
        {"clip": 0.75},
    ],
    ids=str,
)
def test_every_option_changes_a_reward(changed: dict[str, object]) -> None:
    def rewards(options: RewardOptions) -> dict[str, float]:
        entry, exit = {**STEPS[0], **STEPS[1]}, {"a": 0.5, "b": 0.6, "c": 0.35, "d": 0.2}
        after = [{key: 0.95 * loss**2 for key, loss in step.items()} for step in STEPS]
        gains = batch_gains(STEPS, options, entry=entry, exit=exit, after=after)
        of_round = round_gain(entry, options, exit=exit, next_entry={"a": 0.9, "e": 0.55, "f": 0.4})
        changes = standardised_changes(entry, exit)
        return sample_rewards(gains, options, round_gain=of_round, changes=changes)

    without = {key: value for key, value in changed.items() if key != "mix_weight"}
    base = RewardOptions.model_validate(without) if "mix_weight" in changed else RewardOptions()
    found, other = rewards(RewardOptions.model_validate(changed)), rewards(base)
    assert max(abs(found[key] - other[key]) for key in found.keys() & other.keys()) > 1e-6


# -- gain factor and diagnostics


def test_auto_gain_is_bounded_and_looks_at_the_last_64() -> None:
    spread = [0.05, -0.05] * 32
    assert auto_gain(spread) == pytest.approx(10.0)
    assert auto_gain([9.0, -9.0] * 50 + spread) == pytest.approx(10.0)
    assert auto_gain([9.0, -9.0]) == 1.0
    assert auto_gain([0.001, 0.0011]) == auto_gain([0.2, 0.2]) == 50.0
    assert auto_gain([]) == auto_gain([0.3]) == 1.0


def test_auto_gain_counts_earlier_rounds_until_64_newer_gains_are_there() -> None:
    options = RewardOptions(gain="auto")
    gains = {"a": 0.02, "b": -0.02}
    alone = sample_rewards(gains, options)
    assert alone["a"] == pytest.approx(combine(None, 0.02, 0.33, gain=25.0))
    after_wide = sample_rewards(gains, options, recent=[0.4, -0.4] * 31)
    assert 0.5 < after_wide["a"] < alone["a"]


def test_small_gains_hardly_move_a_paper_label_and_gain_50_saturates_large_ones() -> None:
    """Why there is ``auto`` (method page, 2.7 and 2.8)."""

    def labels(first: float, step: float, options: RewardOptions) -> np.ndarray:
        gains = {str(i): first + step * i for i in range(30)}
        return np.array(list(sample_rewards(gains, options).values()))

    assert labels(0.005, 0.0005, RewardOptions()).std() < 0.001
    assert labels(0.005, 0.0005, RewardOptions(gain="auto")).std() > 0.03
    steep = RewardOptions(gain=50.0, round_reward_weight=0.0)
    assert (labels(0.1, 0.01, steep) > 0.98).mean() > 0.9
    automatic = steep.model_copy(update={"gain": "auto"})
    assert (labels(0.1, 0.01, automatic) > 0.98).mean() < 0.2


def test_standardised_changes() -> None:
    found = standardised_changes({"a": 1.0, "b": 1.0, "c": 5.0}, {"a": 0.5, "b": 1.5})
    assert found == pytest.approx({"a": 1.0, "b": -1.0})
    assert standardised_changes({"a": 1.0}, {"a": 0.5}) == {"a": 0.0}
    assert standardised_changes({}, {}) == {}
