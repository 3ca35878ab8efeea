"""The real filter on samples whose gradients are known (method page, section 5.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lada.toy_pool import SAMPLES, SHARE, Outcome, Pool, measure, select, spread, write


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {one.selector: one for one in measure(seeds=(0,))}


def test_the_filter_finds_what_is_rewarded_and_is_no_unbiased_sampler(outcomes: dict[str, Outcome]) -> None:
    random, learned, oracle = (outcomes[name] for name in ("random", "filter", "oracle"))
    assert random.reward + 0.03 < learned.reward < oracle.reward
    assert random.bias < 0.3 < learned.bias < 1, "Theorem 1 assumes what only random selection has"
    assert learned.cosine > 0.9, "the bias is one of length: it still descends"


def test_the_variance_of_what_is_selected_is_bounded(outcomes: dict[str, Outcome]) -> None:
    for one in outcomes.values():
        assert 0 < one.variance <= 1 / SHARE, "a part's squares sum to no more than the whole's"


def test_the_whole_pool_has_no_bias_and_its_own_variance() -> None:
    pool = Pool(3)
    whole = pool.outcome("all", 3, np.arange(SAMPLES))
    assert (whole.bias, whole.cosine, whole.variance) == pytest.approx((0, 1, 1), abs=1e-12)
    assert spread(np.array([[0.0, 0.0], [2.0, 0.0]])) == 1


def test_rewards_are_of_the_angle_to_the_pools_gradient() -> None:
    pool = Pool(4)
    best, worst = pool.rewards.argmax(), pool.rewards.argmin()
    assert pool.gradients[best] @ pool.mean > 0 > pool.gradients[worst] @ pool.mean
    assert best in select("oracle", pool, 4) and worst not in select("oracle", pool, 4)


def test_the_file_has_a_row_per_selector_and_seed(tmp_path: Path, outcomes: dict[str, Outcome]) -> None:
    write(list(outcomes.values()), tmp_path / "pool.csv")
    lines = (tmp_path / "pool.csv").read_text().splitlines()
    assert lines[0] == "selector,seed,bias,cosine,variance,reward"
    assert [line.split(",")[:2] for line in lines[1:]] == [["random", "0"], ["filter", "0"], ["oracle", "0"]]
