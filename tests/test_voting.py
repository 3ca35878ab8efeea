"""WASP's votes against a slow and obvious implementation; oracles 6, 7 and 8 of the baselines page."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lada.voting import (
    boost_base,
    boosted,
    contrast,
    cosine_distances,
    histograms,
    noise_sigma,
    ranked,
    top_share,
    votes_of_one,
)


def test_oracle_6_votes_of_one_private_question() -> None:
    near, far = histograms(np.array([[0.1, 0.2, 0.3, 0.9]]), 3)
    assert near.tolist() == [1, 0.5, 0.25, 0]
    assert far.tolist() == [0, 0.25, 0.5, 1]
    assert near.sum() == far.sum() == votes_of_one(3) == 1.75


def slow_votes(distances: list[list[float]], depth: int) -> tuple[list[float], list[float]]:
    """For every private question: find the nearest that is not taken yet, again and again."""
    count = len(distances[0])
    near, far = [0.0] * count, [0.0] * count
    for row in distances:
        for histogram, better in ((near, min), (far, max)):
            free = list(range(count))
            vote = 1.0
            for _ in range(depth):
                if not free:
                    break
                wanted = better(row[place] for place in free)
                first = next(place for place in free if row[place] == wanted)
                histogram[first] += vote
                free.remove(first)
                vote /= 2
    return near, far


@pytest.mark.parametrize("seed", range(60))
def test_votes_equal_those_of_an_obvious_implementation(seed: int) -> None:
    draw = random.Random(seed)
    private, synthetic, depth = draw.randint(1, 12), draw.randint(1, 15), draw.randint(1, 10)
    levels = draw.choice([3, 1000])  # with three levels there are many ties
    distances = [[draw.randrange(levels) / levels for _ in range(synthetic)] for _ in range(private)]
    near, far = histograms(np.array(distances), depth)
    slow_near, slow_far = slow_votes(distances, depth)
    assert near.tolist() == slow_near and far.tolist() == slow_far
    assert near.sum() == pytest.approx(private * votes_of_one(min(depth, synthetic)))


def test_every_vote_is_exact_in_the_float32_that_is_sent() -> None:
    draw = np.random.default_rng(0)
    near, _ = histograms(draw.random((1000, 200)), 8)
    assert near.astype(np.float32).astype(np.float64).tolist() == near.tolist()


def test_nothing_to_vote_on_gives_nothing() -> None:
    near, far = histograms(np.zeros((3, 0)), 8)
    assert near.shape == far.shape == (0,) and votes_of_one(0) == 0


@pytest.mark.parametrize("depth", range(1, 9))
def test_one_question_gives_what_the_formula_says(depth: int) -> None:
    """Pitfall 3: `2^(Q-1)` is no power in Python."""
    near, _ = histograms(np.arange(20.0)[None], depth)
    assert near.sum() == votes_of_one(depth) == 2 - 2 ** (1 - depth)


def test_distances_of_equal_texts_are_equal_whatever_the_order_of_the_sum() -> None:
    draw = np.random.default_rng(1)
    rows = draw.random((5, 300)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = cosine_distances(rows, rows)
    assert found.diagonal().tolist() == pytest.approx([0] * 5, abs=1e-6)
    assert found[0, 1] == pytest.approx(1 - float(rows[0] @ rows[1]), abs=1e-6)


# -- noise


def test_oracle_7_sigma() -> None:
    given = {"epsilon": 4.0, "delta": 1e-5, "releases": 4}
    exact = 2 * votes_of_one(8)  # 3.984; the page rounds it to 4
    assert noise_sigma(8, **given) * 4 / exact == pytest.approx(9.6896, abs=5e-5)
    assert noise_sigma(8, **given, parties=3) * 4 / exact == pytest.approx(5.5943, abs=5e-5)
    assert noise_sigma(8, epsilon=math.inf, delta=1e-5, releases=4) == 0.0


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("releases", [1, 4, 8])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_the_guarantee_holds_for_all_releases_together(depth: int, releases: int, epsilon: float) -> None:
    """By the exact delta of a Gaussian, mu = norm sqrt(T) / sigma: T releases are one of sqrt(T) the norm."""
    sigma = noise_sigma(depth, epsilon=epsilon, delta=1e-5, releases=releases)
    one = sum(4.0**-place for place in range(depth))
    for norm in (math.sqrt(2 * one), math.sqrt(4 * one)):  # a question left out; one replaced, at worst
        mu = norm * math.sqrt(releases) / sigma
        delta = below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)
        assert 0 <= delta <= 1e-5


def below(value: float) -> float:
    """Standard normal distribution function."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def test_the_norm_of_a_change_is_what_the_guarantee_reckons_with() -> None:
    draw = np.random.default_rng(2)
    distances = draw.random((40, 30))
    whole, less = histograms(distances, 8), histograms(distances[1:], 8)
    change = np.concatenate([a - b for a, b in zip(whole, less, strict=True)])
    assert np.linalg.norm(change) == pytest.approx(math.sqrt(2 * sum(4.0**-place for place in range(8))))
    assert np.abs(change).sum() == pytest.approx(2 * votes_of_one(8))


def test_oracle_8_a_negative_total_does_not_turn_the_order_around() -> None:
    noisy = np.array([3.0, -9.0, 1.0, -20.0, 2.0])
    assert noisy.sum() < 0
    assert ranked(noisy) == [0, 4, 2, 1, 3]
    assert np.argsort(-(noisy / noisy.sum())).tolist() == [3, 1, 2, 4, 0], "what pitfall 1 does"


def test_equal_votes_are_ranked_in_the_order_of_publication() -> None:
    assert ranked(np.array([0.0, 2.0, 2.0, 0.0, 2.0])) == [1, 2, 4, 0, 3]


# -- what is made of votes


def test_good_and_bad_examples_are_the_tops_of_the_histograms() -> None:
    near = np.array([0.0, 5.0, 1.0, 4.0, 0.0, 0.0])
    far = np.array([3.0, 0.0, 0.0, 1.0, 9.0, 0.0])
    assert contrast(near, far, 2) == ([1, 3], [4, 0])


def test_no_question_is_good_and_bad() -> None:
    """Pitfall 8."""
    votes = np.array([5.0, 4.0, 3.0, 2.0])
    good, bad = contrast(votes, votes, 8)
    assert (good, bad) == ([0, 1], [2, 3])
    assert contrast(votes[:1], votes[:1], 8) == ([], [])


def test_the_top_half_leaves_out_what_has_no_votes_yet_first() -> None:
    assert top_share(np.array([0.0, 3.0, 1.0]), 6, 0.5) == [0, 1, 2]
    assert top_share(np.array([0.0, 3.0, 1.0, 2.0]), 4, 0.5) == [1, 3]
    assert top_share(np.zeros(0), 3, 0.5) == [0, 1]
    assert top_share(np.array([1.0, 2.0]), 2, 1.0) == [0, 1]


def test_weights_fall_where_the_letter_was_missed_and_keep_their_sum() -> None:
    base = boost_base(100, 2)
    assert base == pytest.approx(1 + math.sqrt(2 * math.log(50)))
    found = boosted([1.0, 1.0, 2.0], [0.9, 0.2, 0.4], [False, True, True], base=base)
    raw = [1.0, base**-0.8, 2 * base**-0.6]
    assert found == pytest.approx([value * 4 / sum(raw) for value in raw])
    assert sum(found) == pytest.approx(4)
    assert boosted([1.0, 1.0], [0.9, 0.8], [False, False], base=base) == [1.0, 1.0]


def test_fewer_samples_than_epochs_change_no_weight() -> None:
    assert boost_base(2, 3) == boost_base(0, 1) == 1.0
    assert boosted([1.0, 3.0], [0.1, 0.9], [True, False], base=1.0) == pytest.approx([1.0, 3.0])
