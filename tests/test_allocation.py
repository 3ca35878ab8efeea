"""One pair's allocation over several rounds: lag, credit, state (method page, properties 11, 17, 19)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lada.selection.allocation import Allocation, AllocationOptions, RoundLosses, paired_gains
from lada.selection.rewards import RewardOptions, combine, relative_gain

IDS = [f"q{i:02d}" for i in range(40)]


def options(**changes: object) -> AllocationOptions:
    base = {"filter": {"width": 16, "blocks": 2, "epochs": 2}, "cold": {"clusters": 8}, **changes}
    return AllocationOptions.model_validate(base)


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(IDS), 12)).astype(np.float32)


def begun(**changes: object) -> Allocation:
    allocation = Allocation(IDS, options(**changes), 3, "server")
    allocation.choose(features(), round=1)
    return allocation


def losses_of(allocation: Allocation, value: float) -> dict[str, float]:
    assert allocation.selection is not None
    return {name: value + 0.01 * i for i, name in enumerate(allocation.selection.ids)}


def steps_of(entry: dict[str, float], fall: float) -> list[dict[str, float]]:
    names = sorted(entry)
    return [{n: entry[n] - k * fall for n in names[k * 4 : k * 4 + 4]} for k in range(len(names) // 4)]


def test_round_one_selects_prototypes_and_later_rounds_ask_the_filter() -> None:
    allocation = begun()
    assert allocation.selection is not None and allocation.selection.by == "prototypes"
    assert allocation.weight(allocation.selection.ids[0]) is None
    allocation.choose(features(), round=2)
    assert allocation.selection.by == "filter"
    assert allocation.weight(allocation.selection.ids[0]) == pytest.approx(
        float(allocation.selection.total[0])
    )


def test_the_round_gain_is_credited_to_the_previous_selection_one_round_late() -> None:
    allocation = begun()
    entry = losses_of(allocation, 0.7)
    assert allocation.begin_round(entry) is None
    first = allocation.end_round(RoundLosses(entry, steps_of(entry, 0.1)), round=1)
    assert first.round_gain is None
    pool = {e.key: e.reward for e in allocation.sample_filter.pool.entries}
    assert {key[1] for key in pool} == set(first.rewards)
    allocation.choose(features(1), round=2)
    later = losses_of(allocation, 0.3)
    gain = allocation.begin_round(later)
    expected = relative_gain(
        math.log(np.mean(np.exp(list(entry.values())))), math.log(np.mean(np.exp(list(later.values()))))
    )
    assert gain == pytest.approx(float(expected)) and gain > 0
    again = {e.key: e.reward for e in allocation.sample_filter.pool.entries}
    assert again.keys() == pool.keys()
    for (number, name), reward in again.items():
        assert number == 1
        assert reward == pytest.approx(combine(gain, first.gains[name], 0.33))
        assert reward > pool[number, name]


def test_nothing_is_credited_to_samples_that_were_not_selected() -> None:
    allocation = begun()
    entry = losses_of(allocation, 0.7)
    allocation.begin_round(entry)
    found = allocation.end_round(RoundLosses(entry, steps_of(entry, 0.1)), round=1)
    assert set(found.rewards) <= set(allocation.selection.ids)
    assert set(found.rewards) == set().union(*steps_of(entry, 0.1)[:-1])


def test_the_same_set_pairing_has_its_round_gain_at_once() -> None:
    allocation = begun(reward={"profile": "paired"})
    entry = losses_of(allocation, 0.7)
    allocation.begin_round(entry)
    after = {name: value / 2 for name, value in entry.items()}
    found = allocation.end_round(RoundLosses(entry, [], exit=after), round=1)
    assert found.round_gain is not None and found.round_gain > 0
    assert set(found.rewards) == set(entry)
    allocation.choose(features(1), round=2)
    assert allocation.begin_round(losses_of(allocation, 0.3)) is None


def test_the_likelihood_profile_ranks_by_likelihood() -> None:
    allocation = begun(reward={"profile": "likelihood"})
    entry = losses_of(allocation, 0.7)
    likelihood = {name: -float(i) for i, name in enumerate(entry)}
    found = allocation.end_round(RoundLosses(entry, [], exit=entry, likelihood=likelihood), round=1)
    assert sorted(found.rewards, key=found.rewards.__getitem__, reverse=True) == list(entry)


def test_state_restores_everything_bit_for_bit() -> None:
    straight, restored = begun(), begun()
    entry = losses_of(straight, 0.7)
    for one in (straight, restored):
        one.begin_round(entry)
        one.end_round(RoundLosses(entry, steps_of(entry, 0.1)), round=1)
        one.choose(features(1), round=2)
    tensors, values = restored.state()
    restored = Allocation(IDS, options(), 3, "server")
    restored.load(tensors, values)
    entry = losses_of(straight, 0.4)
    for one in (straight, restored):
        one.begin_round(entry)
        one.end_round(RoundLosses(entry, steps_of(entry, 0.05)), round=2)
        one.choose(features(2), round=3)
    assert straight.selection.ids == restored.selection.ids
    assert (straight.selection.total == restored.selection.total).all()
    assert straight.state()[1] == restored.state()[1]


def test_an_ablation_without_filter_takes_everything_and_teaches_nothing() -> None:
    allocation = begun(select={"mode": "all"})
    assert allocation.selection.ids == IDS
    before = {key: value.clone() for key, value in allocation.sample_filter.state().items()}
    entry = losses_of(allocation, 0.7)
    allocation.begin_round(entry)
    allocation.end_round(RoundLosses(entry, steps_of(entry, 0.1)), round=1)
    after = allocation.sample_filter.state()
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)


def test_online_updates_change_the_filter_during_the_round() -> None:
    results = []
    for online in (False, True):
        allocation = begun(filter={"width": 16, "blocks": 2, "epochs": 1, "online": online})
        entry = losses_of(allocation, 0.7)
        allocation.begin_round(entry)
        for step in steps_of(entry, 0.1):
            allocation.after_step(step, round=1)
        results.append(allocation.sample_filter.score(allocation.selection.features).total)
    assert not np.allclose(results[0], results[1], atol=1e-6)


def test_refinement_drops_what_the_filter_no_longer_wants() -> None:
    allocation = begun(select={"refine": True, "min_frac": 0.5})
    batch = allocation.selection.ids[:8]
    assert allocation.keep(batch) == set(batch)  # prototypes are not refined
    allocation.choose(features(), round=2)
    batch = allocation.selection.ids[:8]
    scores = allocation.sample_filter.score(allocation.selection.features[:8]).total
    wanted = {name for name, score in zip(batch, scores, strict=True) if score > 0.5}
    assert allocation.keep(batch) == (wanted or {batch[int(scores.argmax())]})


def test_paired_gains_use_the_exit_pass_or_the_last_visit() -> None:
    entry = {"a": 1.0, "b": 1.0}
    with_exit = paired_gains(RoundLosses(entry, [], exit={"a": 0.5, "b": 1.5}), RewardOptions())
    assert with_exit["a"] > 0 > with_exit["b"]
    visits = RoundLosses(entry, [{"a": 1.0}, {"b": 1.0}, {"a": 0.4}])
    assert paired_gains(visits, RewardOptions())["a"] == pytest.approx(
        float(relative_gain(1.0, 0.4)), rel=1e-12
    )


def test_confidence_of_the_sender_reaches_the_features() -> None:
    plain, told = begun(), begun(features={"sender_confidence": True})
    assert told.selection.features.shape[1] == plain.selection.features.shape[1] + 2
