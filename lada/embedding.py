"""Fixed embedders of question texts: the same vector for the same text at every party, in every round.

Private and synthetic questions are compared in this space (WASP; baselines, section 5 e).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from lada.language_model import LanguageModel
from lada.records import Question
from lada.resume import Resume
from lada.selection.features import FeatureOptions, prompt_features
from lada.voting import Rows

Embed = Callable[[Sequence[str]], Rows]
"""Texts -> float32 [texts, D], rows of length 1 (0 for a text without a word)."""
TFIDF_SIZE = 4096


def question_text(question: Question) -> str:
    """What is embedded: stem and options, neither letter nor rationale.

    Choice: options in the order of the alphabet, so that a question with its options shuffled is the same.
    """
    return " ".join((question.question, *sorted(question.options)))


def tfidf_embedder(reference: Sequence[str]) -> Embed:
    """Words and pairs of words hashed to 4096 places, weighed by how rare they are among ``reference``.

    Choice: numbers of one digit are left out: what a question is about counts, not its numbers.
    """
    count = HashingVectorizer(n_features=TFIDF_SIZE, alternate_sign=False, norm=None, ngram_range=(1, 2))
    weigh = TfidfTransformer().fit(count.transform(reference))

    def embed(texts: Sequence[str]) -> Rows:
        if not texts:
            return np.zeros((0, TFIDF_SIZE), dtype=np.float32)
        return np.asarray(weigh.transform(count.transform(texts)).toarray(), dtype=np.float32)

    return embed


def hidden_embedder(model: LanguageModel, *, resume: Resume | None = None) -> Embed:
    """Last hidden states of a model that nobody trains, averaged over the tokens and scaled to length 1.

    Args:
        resume: may pause this after any pass and go on there.
    """

    def embed(texts: Sequence[str]) -> Rows:
        if not texts:
            return np.zeros((0, model.head_shape[1]), dtype=np.float32)
        rows = prompt_features(model, texts, FeatureOptions(num_layers=1), resume=resume)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)

    return embed
