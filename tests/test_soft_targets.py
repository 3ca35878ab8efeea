"""Sparse targets from other models' rows: mapping, collisions, fall-back, mixing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lada.lab import WEIGHTS
from lada.losses import SoftLoss
from lada.records import Item
from lada.soft_targets import SoftTargets, mix, one_hot, padded, softmax, transfer
from lada.token_alignment import NOTHING, VocabularyMap
from lada.vocabulary import open_vocabulary

QWEN = open_vocabulary(WEIGHTS / "qwen3-0.6b")
LLAMA = open_vocabulary(WEIGHTS / "meta-llama-3-8b")
SAME = VocabularyMap(QWEN, QWEN)


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_oracle_4_the_same_tokenizer_gives_the_softmax_of_its_own_top() -> None:
    given_ids, values = ids([5, 9, 0], [7, 6, 5]), logits([0.0, -1.0, -2.5], [0.0, -0.1, -9.0])
    found, probs = transfer(given_ids, values, [0, 1], SAME, temperature=1.0)
    assert np.array_equal(found, given_ids)
    torch.testing.assert_close(torch.from_numpy(probs), torch.from_numpy(values).softmax(1))


def test_rows_are_taken_from_where_they_are_aligned() -> None:
    given_ids, values = ids([5, 9], [7, 6]), logits([0.0, -1.0], [0.0, -2.0])
    found, probs = transfer(given_ids, values, [1, NOTHING, 0], SAME, temperature=1.0)
    assert found[[0, 2]].tolist() == [[7, 6], [5, 9]]
    assert probs.sum(axis=1).tolist() == pytest.approx([1, 0, 1])


def test_the_temperature_flattens() -> None:
    _, hot = transfer(ids([5, 9]), logits([0.0, -2.0]), [0], SAME, temperature=2.0)
    assert hot[0].tolist() == pytest.approx(torch.tensor([0.0, -1.0]).softmax(0).tolist())


def test_of_two_tokens_that_map_to_one_the_likelier_stays() -> None:
    answer, other = QWEN.by_text[" answer"], QWEN.by_text[" is"]
    mapping = VocabularyMap(QWEN, LLAMA, {answer: 50, other: 50, 99: 60})
    found, probs = transfer(
        ids([99, other, answer]), logits([0.0, -1.0, -1.5]), [0], mapping, temperature=1.0
    )
    assert found[0].tolist() == [60, 50, 0]
    assert probs[0].tolist() == pytest.approx([*torch.tensor([0.0, -1.0]).softmax(0).tolist(), 0.0])


def test_what_maps_to_nothing_takes_no_share() -> None:
    """Pitfall 7: special tokens and padded rows of the embedding among the likeliest."""
    padded_row, special = QWEN.size + 3, 0
    answer = QWEN.by_text[" answer"]
    found, probs = transfer(
        ids([padded_row, special, answer]),
        logits([0.0, -0.1, -4.0]),
        [0],
        VocabularyMap(QWEN, LLAMA),
        temperature=1.0,
    )
    assert probs[0].tolist() == [0, 0, 1]
    assert LLAMA.text(int(found[0, 2])) == " answer"
    _, nothing = transfer(ids([padded_row]), logits([0.0]), [0], VocabularyMap(QWEN, LLAMA), temperature=1.0)
    assert nothing.tolist() == [[0]]


def test_the_fall_back_is_the_token_that_the_row_predicts() -> None:
    """Pitfall 1: row i predicts token i of the response, not the one before it."""
    response = (11, 12, 13, 1)
    rows = transfer(ids([5, 6]), logits([0.0, -1.0]), [0, NOTHING, NOTHING, 0], SAME, temperature=1.0)
    found, probs = one_hot(rows, [False, True, True, False], response)
    assert found[1:3, 0].tolist() == [12, 13]
    assert probs[1:3].tolist() == [[1, 0], [1, 0]]
    assert np.array_equal(probs[[0, 3]], rows[1][[0, 3]])


def test_sources_are_mixed_where_they_have_knowledge() -> None:
    one = (ids([5, 6], [5, 6], [0, 0]), logits([0.5, 0.5], [1.0, 0.0], [0.0, 0.0]))
    two = (ids([7], [0], [0]), logits([1.0], [0.0], [0.0]))
    found, probs = mix([one, two], [0.25, 0.75])
    assert found[0].tolist() == [5, 6, 7]
    assert probs[0].tolist() == pytest.approx([0.125, 0.125, 0.75])
    assert probs[1].tolist() == [1, 0, 0], "a row that one source lacks is the others'"
    assert probs[2].tolist() == [0, 0, 0]


def test_sources_that_speak_of_the_same_letters_are_mixed_letter_by_letter() -> None:
    """Each letter once: p over the four letters, not over as many as all sources name together."""
    letters = ids([7, 3, 9, 5])
    one, two = softmax(np.array([[0.0, 1.0, 2.0, 3.0]])), softmax(np.array([[2.0, 0.0, 0.0, -1.0]]))
    found, probs = mix([(letters, one), (letters, two)], [0.25, 0.75])
    assert np.array_equal(found, letters)
    expected = torch.from_numpy(0.25 * one + 0.75 * two)
    torch.testing.assert_close(torch.from_numpy(probs), expected)
    student = torch.randn(1, 10, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    loss, segment = SoftLoss(hard_weight=0.0, restricted=True), torch.zeros(1, dtype=torch.long)
    _, distilled = loss(torch.zeros(1), student[:, found[0]], torch.from_numpy(probs), segment, 1)
    restricted = student[:, letters[0]].log_softmax(1)
    torch.testing.assert_close(distilled, -(expected * restricted).sum(1))


@given(st.lists(st.lists(st.floats(-60_000, 0, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_softmax_rows_sum_to_one(rows: list[list[float]]) -> None:
    found = softmax(np.array(rows, dtype=np.float64))
    assert found.sum(axis=1).tolist() == pytest.approx([1.0] * len(rows), abs=1e-6)
    assert softmax(np.full((1, 3), -np.inf)).tolist() == [[0, 0, 0]]


def test_texts_of_several_widths_share_one() -> None:
    members = [
        SoftTargets(torch.ones(2, width, dtype=torch.long), torch.ones(2, width), 1.0) for width in (1, 3)
    ]
    wide_ids, wide_probs = padded(members)
    assert [one.shape for one in wide_ids] == [(2, 3), (2, 3)]
    assert wide_probs[0].tolist() == [[1, 0, 0], [1, 0, 0]]


# -- oracle 11


def permuted(item: Item, order: list[int]) -> Item:
    options = tuple(item.options[place] for place in order)
    letter = "ABCD"[order.index("ABCD".index(item.answer))]
    return item.model_copy(update={"options": options, "answer": letter})


def scores(item: Item) -> torch.Tensor:
    """Logits of an oracle that reads option texts: the longest is right."""
    return torch.tensor([float(len(option)) for option in item.options])


@given(st.permutations(range(4)), st.permutations(["a", "bb", "ccc", "dddd"]))
def test_oracle_11_shuffled_letters_change_nothing(order: list[int], options: list[str]) -> None:
    """An oracle scorer is as right as before, and the letter loss follows the options, not the letters."""
    item = Item(id="q", question="?", options=tuple(options), answer="ABCD"[options.index("dddd")])  # type: ignore[arg-type]
    shuffled = permuted(item, order)
    for one in (item, shuffled):
        assert "ABCD"[int(scores(one).argmax())] == one.answer
    student = torch.tensor([0.3, -0.2, 0.9, -1.0])
    loss = SoftLoss(hard_weight=0.0, restricted=True)
    values = []
    for one, own in ((item, student), (shuffled, student[order])):
        q = scores(one).softmax(0)[None]
        _, distilled = loss(torch.zeros(1), own[None], q, torch.zeros(1, dtype=torch.long), 1)
        values.append(float(distilled))
    assert values[0] == pytest.approx(values[1], abs=1e-6)
