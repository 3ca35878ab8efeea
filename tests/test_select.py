"""The selection rule and the cold start: bounds, ties, determinism, independence of order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.cluster import KMeans

from lada.selection.prototypes import ColdOptions, cold_start
from lada.selection.sample_filter import FilterOptions, SampleFilter
from lada.selection.select import SelectOptions, refine, select

IDS = [f"q{i:03d}" for i in range(100)]
RULES = ["threshold", "topk", "quantile", "softmax_sample"]


def spread_scores() -> dict[str, float]:
    """100 different scores from .005 to .995, not in the order of the ids; 50 of them above .5."""
    return {IDS[(37 * i) % 100]: (i + 0.5) / 100 for i in range(100)}


def best(scores: dict[str, float], count: int) -> list[str]:
    return sorted(sorted(scores, key=lambda key: (-scores[key], key))[:count])


def chosen(scores: dict[str, float], **options: object) -> list[str]:
    return select(scores, SelectOptions.model_validate(options), seed=0)


def test_threshold_is_strict() -> None:
    scores = {"a": 0.5, "b": np.nextafter(0.5, 1), "c": 0.7, "d": 0.1}
    assert chosen(scores) == ["b", "c"]
    assert chosen(spread_scores()) == best(spread_scores(), 50)
    assert chosen(spread_scores(), threshold=0.9) == best(spread_scores(), 10)


def test_clamps_fall_to_the_best_scored() -> None:
    low, high = ({key: s / 4 + base for key, s in spread_scores().items()} for base in (0.0, 0.7))
    assert chosen(low) == best(low, 10)
    assert chosen(low, min_frac=0.07) == best(low, 7)
    assert chosen(high) == IDS
    assert chosen(high, max_frac=0.3) == best(high, 30)
    assert chosen(spread_scores(), min_frac=0.6) == best(spread_scores(), 60)
    assert len(chosen(low, min_frac=0.0)) == 1, "never empty"
    assert len(chosen({"a": 0.1}, max_frac=0.2)) == 1


def test_rules_take_their_share() -> None:
    scores = spread_scores()
    assert chosen(scores, rule="topk", share=0.25) == best(scores, 25)
    assert chosen(scores, rule="quantile", share=0.25) == best(scores, 25)
    tied = {key: float(i < 40) for i, key in enumerate(IDS)}
    assert chosen(tied, rule="topk", share=0.25) == IDS[:25], "ties are broken by id"
    assert chosen(tied, rule="quantile", share=0.25) == IDS[:40], "a quantile takes all ties"
    assert len(chosen(scores, rule="softmax_sample", share=0.25)) == 25
    assert len(chosen(scores, mode="random", share=0.25)) == 25
    assert chosen(scores, mode="all", share=0.25) == IDS


def test_softmax_sample_prefers_high_scores_without_following_them() -> None:
    scores = spread_scores()
    options = SelectOptions(rule="softmax_sample", share=0.2)
    draws = [select(scores, options, seed=seed) for seed in range(50)]
    mean = np.mean([scores[key] for draw in draws for key in draw])
    assert 0.6 < mean < 0.85, "between random (.5) and top-k (.9)"
    assert len({tuple(draw) for draw in draws}) == 50
    flat = select(dict.fromkeys(IDS, 0.5), options, seed=0)
    assert flat != IDS[:20], "without differences it is a plain draw"


def test_random_ignores_scores_and_covers_all_ids() -> None:
    options = SelectOptions(mode="random", share=0.2)
    scores = spread_scores()
    draws = [select(scores, options, seed=seed) for seed in range(50)]
    assert draws[0] == select({key: -s for key, s in scores.items()}, options, seed=0)
    assert set().union(*draws) == set(IDS)


@pytest.mark.parametrize("mode", ["filter", "random", "all"])
@pytest.mark.parametrize("rule", RULES)
def test_same_seed_same_choice_whatever_the_order(mode: str, rule: str) -> None:
    scores = {key: round(s, 1) for key, s in spread_scores().items()}  # with ties
    options = SelectOptions.model_validate({"mode": mode, "rule": rule})
    expected = select(scores, options, seed=3)
    assert expected == sorted(set(expected)) and set(expected) <= set(IDS)
    for shuffle in range(3):
        items = random.Random(shuffle).sample(sorted(scores.items()), 100)
        assert select(dict(items), options, seed=3) == expected
        ids, values = zip(*items, strict=True)
        assert select((ids, np.array(values)), options, seed=3) == expected


def test_centre_moves_the_threshold_to_the_mean_reward() -> None:
    scores = spread_scores()
    ema = SelectOptions(center="ema")
    assert select(scores, ema, seed=0, centre=0.8) == best(scores, 20)
    assert select(scores, ema, seed=0) == select(scores, SelectOptions(), seed=0, centre=0.8)
    assert select(scores, ema, seed=0) == best(scores, 50), "no reward seen yet: no shift"


def test_fresh_takes_no_id_twice_while_others_remain() -> None:
    options = SelectOptions(rule="topk", share=0.4, fresh=True)
    scores, used, rounds = spread_scores(), set[str](), []
    for _ in range(3):
        rounds.append(select(scores, options, seed=0, used=used))
        used |= set(rounds[-1])
    assert [len(ids) for ids in rounds] == [40, 40, 20], "shares are of all ids; the last round has the rest"
    assert set().union(*rounds) == set(IDS)
    assert select(scores, options, seed=0, used=used) == rounds[0], "all used: from the start again"
    again = select(scores, SelectOptions(rule="topk", share=0.4), seed=0, used=set(rounds[0]))
    assert again == rounds[0], "without fresh, used ids count like others"


@pytest.mark.parametrize("mode, rule", [("random", "topk"), *(("filter", rule) for rule in RULES)])
def test_fresh_holds_for_every_rule(mode: str, rule: str) -> None:
    options = SelectOptions.model_validate({"mode": mode, "rule": rule, "fresh": True})
    used = set(IDS[:95])
    found = select(spread_scores(), options, seed=1, used=used)
    assert found and not set(found) & used


def test_refine_drops_what_the_filter_no_longer_wants() -> None:
    batch = {"b": 0.6, "a": 0.4, "c": 0.5}
    assert refine(batch, SelectOptions()) == ["a", "b", "c"]
    assert refine(batch, SelectOptions(refine=True)) == ["b"]
    assert refine(batch, SelectOptions(refine=True, threshold=0.3)) == ["a", "b", "c"]
    assert refine({"a": 0.1, "b": 0.3}, SelectOptions(refine=True)) == ["b"], "a step is never empty"
    assert refine(batch, SelectOptions(refine=True, mode="random")) == ["a", "b", "c"]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValidationError, match="above max_frac"):
        SelectOptions(min_frac=0.5, max_frac=0.4)
    for scores in ({}, {"a": float("nan")}, (["a", "a"], np.array([0.1, 0.2]))):
        with pytest.raises(AssertionError):
            select(scores, SelectOptions(), seed=0)


def test_an_untrained_filter_is_neutral_and_its_selection_is_reproducible() -> None:
    features = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    ids = [f"q{i}" for i in range(500)]
    for seed in range(5):
        scores = SampleFilter(64, FilterOptions(), seed=seed).score(features)
        assert np.abs(scores.total - 0.5).max() < 0.05
        found = select((ids, scores.total), SelectOptions(min_frac=0.2, max_frac=0.3), seed=0)
        assert 100 <= len(found) <= 150
        again = SampleFilter(64, FilterOptions(), seed=seed).score(features)
        assert select((ids, again.total), SelectOptions(min_frac=0.2, max_frac=0.3), seed=0) == found


# -- cold start


def blobs(per_blob: int = 20, count: int = 5, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = 5 * rng.normal(size=(count, 80))
    labels = np.repeat(np.arange(count), per_blob)
    points = centres[labels] + rng.normal(size=(len(labels), 80))
    order = rng.permutation(len(labels))
    ids = [f"q{i:03d}" for i in range(len(labels))]
    return ids, points[order].astype(np.float32), labels[order]


def test_cold_start_takes_the_nearest_of_each_cluster() -> None:
    ids, points, labels = blobs()
    found = cold_start(ids, points, ColdOptions(clusters=5, share=0.3), seed=0)
    assert found == sorted(set(found)) and set(found) <= set(ids)
    rows = [ids.index(key) for key in found]
    assert [int(n) for n in np.bincount(labels[rows])] == [6] * 5
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for blob in range(5):
        members = np.flatnonzero(labels == blob)
        distance = np.linalg.norm(unit[members] - unit[members].mean(axis=0), axis=1)
        # 64 of 80 components keep nearly all of the distance; the six nearest must be among the eight.
        assert set(members[np.argsort(distance)[:8]]) >= {row for row in rows if labels[row] == blob}


def test_cold_start_medoid_takes_one_of_each_of_many_clusters() -> None:
    ids, points, labels = blobs()
    found = cold_start(ids, points, ColdOptions(mode="medoid", share=0.3), seed=0)
    assert len(found) == 30
    assert set(labels[[ids.index(key) for key in found]]) == set(range(5))


def test_cold_start_does_not_depend_on_order() -> None:
    ids, points, _ = blobs()
    options = ColdOptions(clusters=8)
    expected = cold_start(ids, points, options, seed=7)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(ids))
        assert cold_start([ids[i] for i in order], points[order], options, seed=7) == expected


@pytest.mark.parametrize("number", [1, 2, 5, 40])
@pytest.mark.parametrize("mode", ["nearest_q", "medoid"])
def test_cold_start_of_tiny_or_repeated_pools(number: int, mode: str) -> None:
    ids, points, _ = blobs()
    options = ColdOptions.model_validate({"mode": mode})
    few = cold_start(ids[:number], points[:number], options, seed=0)
    assert few and len(set(few)) == len(few) <= number
    same = cold_start(ids[:number], np.repeat(points[:1], number, axis=0), options, seed=0)
    assert same and set(same) <= set(ids[:number])
    assert cold_start(ids[:number], np.zeros((number, 4), dtype=np.float32), options, seed=0)


def test_cold_start_scales_rows_first() -> None:
    ids, points, _ = blobs()
    scale = np.random.default_rng(1).uniform(0.1, 10, size=(len(ids), 1)).astype(np.float32)
    options = ColdOptions(clusters=5)
    assert cold_start(ids, points * scale, options, seed=0) == cold_start(ids, points, options, seed=0)


def test_all_components_are_plain_k_means() -> None:
    """Principal components are a rotation: with all of them, clusters are those of the points themselves."""
    ids, points, labels = blobs(per_blob=15)
    found = cold_start(ids, points, ColdOptions(clusters=5, share=1.0, components=75), seed=0)
    assert found == ids
    plain = KMeans(5, n_init=10, random_state=0).fit(points)
    assert len({(int(a), int(b)) for a, b in zip(plain.labels_, labels, strict=True)}) == 5


@pytest.mark.parametrize(
    "changed", [{"mode": "medoid"}, {"clusters": 3}, {"share": 0.5}, {"components": 1}], ids=str
)
def test_every_cold_option_changes_the_choice(changed: dict[str, object]) -> None:
    ids, points, _ = blobs()
    base = {"clusters": 8}
    assert cold_start(ids, points, ColdOptions.model_validate(base | changed), seed=0) != cold_start(
        ids, points, ColdOptions.model_validate(base), seed=0
    )
