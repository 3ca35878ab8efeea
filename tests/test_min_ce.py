"""From whom a party learns, and how questions without a letter get one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lada.errors import ExchangeError
from lada.labels import coded, decoded, labelled, majority
from lada.payloads import Origin
from lada.selection.min_ce import Rule, source_weights

VALUES = st.lists(st.tuples(*[st.floats(0, 5, width=32) for _ in range(4)]), min_size=1, max_size=6)
LETTER = st.sampled_from(["A", "B", "C", "D", None])


def weights(own: list[float], others: list[list[float]], rule: Rule) -> list[list[float]]:
    found: list[list[float]] = source_weights(np.array(own), np.array(others), rule).tolist()
    return found


def test_oracle_5_of_the_dual_selection() -> None:
    """c0 = 1.0, c = (0.8, 0.9, 1.2): the server takes client 1; client 3 alone takes the LLM."""
    assert weights([1.0], [[0.8, 0.9, 1.2]], "paper") == [[0, 1, 0, 0]]
    assert [weights([c], [[1.0]], "paper") for c in (0.8, 0.9, 1.2)] == [[[0, 0]], [[0, 0]], [[0, 1]]]
    assert weights([1.0], [[0.8, 0.9, 1.2]], "greater") == [[0, 1, 0, 0]]
    assert [weights([c], [[1.0]], "greater") for c in (0.8, 0.9, 1.2)] == [[[1, 0]], [[1, 0]], [[0, 1]]]


def test_oracle_5_where_the_llm_knows_best_it_learns_nothing() -> None:
    found = np.array(weights([0.1, 0.2], [[0.8, 0.9, 1.2], [0.3, 0.2, 0.4]], "paper"))
    assert not found.any()


@given(VALUES, st.sampled_from(["greater", "weighted_mean", "paper"]))
def test_rules_by_their_definitions(rows: list[tuple[float, ...]], rule: Rule) -> None:
    found = weights([row[0] for row in rows], [list(row[1:]) for row in rows], rule)
    for row, given_weights in zip(rows, found, strict=True):
        if rule == "weighted_mean":
            rewards = torch.tensor([-value for value in row], dtype=torch.float64).exp()
            assert given_weights == pytest.approx(rewards.softmax(0).tolist(), abs=1e-12)
            continue
        least = min(row)
        expected = [0.0] * 4
        if rule == "greater" or min(row[1:]) < row[0]:
            expected[row.index(least)] = 1.0
        assert given_weights == expected


def test_close_cross_entropies_are_told_apart() -> None:
    """Pitfall 3: exp(-c) in bfloat16 makes these equal, and the tie goes to the party itself."""
    own, other = 0.1000, 0.0998
    rewards = torch.tensor([-own, -other]).exp().bfloat16()
    assert rewards[0] == rewards[1]
    assert weights([own], [[other]], "greater") == [[0, 1]]


def test_ties_go_to_the_first_source() -> None:
    assert weights([1.0], [[1.0, 1.0]], "greater") == [[1, 0, 0]]
    assert weights([2.0], [[1.0, 1.0]], "paper") == [[0, 1, 0]]
    assert weights([1.0], [[1.0, 1.0]], "paper") == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("ABBB", "B"),
        ("ABBC", "B"),
        ("AABB", "A"),
        ("BABA", "B"),
        ("ABCD", "A"),
        ("ABBCC", "A"),
        ("-BCC", "C"),
        ("-CB-", "C"),
        ("----", None),
        ("A---", "A"),
    ],
)
def test_the_majority_labels_and_the_llm_decides_ties(letters: str, expected: str | None) -> None:
    assert majority([None if one == "-" else one for one in letters]) == expected  # type: ignore[misc]


@given(st.lists(LETTER, min_size=1, max_size=7))
def test_nobody_has_more_votes_than_the_majority(letters: list) -> None:  # type: ignore[type-arg]
    found = majority(letters)
    counts = {letter: letters.count(letter) for letter in "ABCD"}
    if found is None:
        assert not any(counts.values())
    elif letters[0] != found:
        assert counts[found] == max(counts.values())
        assert list(counts.values()).count(counts[found]) == 1 or letters[0] is None


def test_a_text_gets_another_conclusion() -> None:
    assert labelled("1 + 1 = 2 B.\nThe answer is B", "C") == "1 + 1 = 2 B.\nThe answer is C"
    assert (
        labelled("If the answer is B: no.\nthe answer is A.", "D")
        == "If the answer is B: no.\nThe answer is D"
    )
    assert labelled("2 B. \n", "B") == "2 B.\nThe answer is B"


@given(st.lists(LETTER, max_size=6))
def test_letters_travel_as_bytes(letters: list) -> None:  # type: ignore[type-arg]
    origin = Origin("server", "r00-label", "letters.safetensors")
    assert coded(letters).nbytes == len(letters)
    assert decoded({"letters": coded(letters)}, len(letters), origin) == letters
    with pytest.raises(ExchangeError, match="item-count"):
        decoded({"letters": coded(letters)}, len(letters) + 1, origin)
    with pytest.raises(ExchangeError, match="item-count"):
        decoded({}, 1, origin)
