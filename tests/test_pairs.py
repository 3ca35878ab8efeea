"""Pairs and overlap weights (Eq. 4; method page, property 16)."""

from __future__ import annotations

import pytest

from lada.distillation import _without as wanted_alone
from lada.pairs import TextPair, overlap_weights, text_pairs
from lada.records import Response
from lada.training import Example, Term


def pair(name: str, partner: str, chosen: str = "a b", rejected: str = "c") -> TextPair:
    return TextPair(name, partner, Response(id=name, text=chosen), Response(id=name, text=rejected))


PAIRS = [pair("q1", "client-1"), pair("q1", "client-2"), pair("q2", "client-1"), pair("q3", "client-2")]
REWARDS = {("q1", "client-1"): 0.6, ("q1", "client-2"): 0.2, ("q2", "client-1"): 0.9, ("q3", "client-2"): 0.1}


def weights(kind: str, rewards: dict = REWARDS, temperature: float = 0.1) -> dict[tuple[str, str], float]:
    return overlap_weights(PAIRS, kind, rewards=rewards, temperature=temperature)


@pytest.mark.parametrize("kind", ["reward", "uniform", "softmax", "size"])
def test_weights_sum_to_one_on_overlaps_and_are_one_on_singletons(kind: str) -> None:
    found = weights(kind)
    assert found["q1", "client-1"] + found["q1", "client-2"] == pytest.approx(1)
    assert found["q2", "client-1"] == found["q3", "client-2"] == 1


def test_weights_follow_the_predicted_reward() -> None:
    assert weights("reward")["q1", "client-1"] == pytest.approx(0.75)
    assert weights("softmax")["q1", "client-1"] == pytest.approx(1 / (1 + 2.718281828459045**-4))
    assert weights("softmax", temperature=10.0)["q1", "client-1"] == pytest.approx(0.51, abs=1e-3)


def test_weights_by_size_follow_the_number_of_pairs() -> None:
    more = [*PAIRS, pair("q4", "client-2")]
    found = overlap_weights(more, "size", rewards={**REWARDS, ("q4", "client-2"): 0.5}, temperature=1.0)
    assert found["q1", "client-2"] == pytest.approx(3 / 5)


def test_a_prediction_that_is_missing_makes_all_weights_of_a_sample_equal() -> None:
    found = weights("reward", {**REWARDS, ("q1", "client-2"): None})
    assert found["q1", "client-1"] == found["q1", "client-2"] == 0.5


def test_rewards_at_or_below_zero_still_get_a_weight() -> None:
    found = weights("reward", {**REWARDS, ("q1", "client-2"): -3.0})
    assert 0 < found["q1", "client-2"] < 0.01


def test_without_weights_every_pair_counts_in_full_and_only_overlaps_differ() -> None:
    assert set(weights("none").values()) == {1.0}
    differing = {key for key in weights("none") if weights("none")[key] != weights("uniform")[key]}
    assert differing == {("q1", "client-1"), ("q1", "client-2")}


@pytest.mark.parametrize("kind", ["reward", "uniform", "softmax", "size", "none"])
def test_a_pair_that_refinement_leaves_weighs_as_if_it_had_always_been_alone(kind: str) -> None:
    """Eq. 4: w = 1 where one pair has a sample, whatever the kind; with ``none`` also where several have."""
    found = weights(kind)
    terms = [Term(one, 1, 0, found["q1", one]) for one in ("client-1", "client-2")]
    example = Example("q1", (1,), ((2,), (3,)), tuple(terms))
    kept = wanted_alone(example, {("q1", "client-2"), ("q2", "client-1")})
    assert kept is not None
    assert [(term.partner, term.weight) for term in kept.terms] == [("client-2", pytest.approx(1))]
    assert wanted_alone(example, {("q1", "client-1"), ("q1", "client-2")}) == example
    assert wanted_alone(example, {("q2", "client-1")}) is None


def test_a_pair_needs_both_texts() -> None:
    own = {"q1": Response(id="q1", text="mine"), "q2": Response(id="q2", text="mine")}
    theirs = {"server": {"q2": Response(id="q2", text="theirs"), "q3": Response(id="q3", text="theirs")}}
    found = text_pairs({"server": ["q3", "q2", "q1"]}, theirs, own)
    assert [(one.id, one.chosen.text, one.rejected.text) for one in found] == [("q2", "theirs", "mine")]


def test_texts_that_differ_in_white_space_alone_are_the_same() -> None:
    assert pair("q", "server", "a  b\n", "a b").same
    assert not pair("q", "server", "a b", "ab").same
