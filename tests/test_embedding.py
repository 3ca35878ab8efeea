"""Fixed embedders: the same text gives the same vector, whoever embeds it beside whatever else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lada.embedding import Embed, hidden_embedder, question_text, tfidf_embedder
from lada.records import Item
from tests.tiny_models import tiny_model

TEXTS = ["t5 t6 t7 t8", "t9 t10", "t5 t6 t7 t9", "t40 t41 t42 t43 t44"]


def tfidf() -> Embed:
    return tfidf_embedder(TEXTS)


def hidden() -> Embed:
    return hidden_embedder(tiny_model())


@pytest.fixture(params=[tfidf, hidden])
def embed(request: pytest.FixtureRequest) -> Embed:
    made: Callable[[], Embed] = request.param
    return made()


def test_rows_have_length_1(embed: Embed) -> None:
    rows = embed(TEXTS)
    assert rows.dtype == np.float32 and len(rows) == 4
    assert np.linalg.norm(rows, axis=1).tolist() == pytest.approx([1] * 4, abs=1e-5)


def test_a_row_depends_on_its_text_alone(embed: Embed) -> None:
    rows = embed(TEXTS)
    assert embed([TEXTS[2]]) == pytest.approx(rows[2:3], abs=1e-5)
    assert embed(TEXTS[::-1])[::-1] == pytest.approx(rows, abs=1e-5)
    assert len(embed([])) == 0 and embed([]).shape[1] == rows.shape[1]


def test_texts_that_share_words_are_nearer() -> None:
    rows = tfidf()(TEXTS)
    near, other = float(rows[0] @ rows[2]), float(rows[0] @ rows[3])
    assert near > 0.3 and other == 0


def test_rare_words_count_more_than_frequent_ones() -> None:
    embed = tfidf_embedder(["sum age", "sum day", "sum order", "sum unit"])
    rows = embed(["sum age", "sum day", "age"])
    assert float(rows[0] @ rows[2]) > float(rows[0] @ rows[1])


def test_a_text_without_a_word_is_far_from_everything() -> None:
    assert not tfidf()(["5 ?"]).any()


def test_neither_letter_nor_rationale_is_embedded() -> None:
    item = Item(id="q", question="What?", options=tuple("wxyz"), answer="B", rationale="secret", domain="d")
    assert question_text(item) == "What? w x y z"
    assert question_text(item.model_copy(update={"options": tuple("zwyx")})) == "What? w x y z"
