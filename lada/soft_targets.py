"""Sparse soft targets: what the rows of a text learn from other models' likeliest tokens.

Never a dense distribution over a vocabulary: a row holds K token ids and their probabilities (baselines,
section 4d9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lada.token_alignment import NOTHING, VocabularyMap

Rows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids [n, K] and their probabilities [n, K]; a row without knowledge has probabilities 0."""


@dataclass(frozen=True)
class SoftTargets:
    """Targets of one text.

    Attributes:
        ids, probs: [n, C], one row per response token; a row of zeros has no knowledge.
        weight: of this text's distillation term; 0 leaves it out.
    """

    ids: Tensor
    probs: Tensor
    weight: float


def padded(members: Sequence[SoftTargets]) -> tuple[list[Tensor], list[Tensor]]:
    """Ids and probabilities of several texts, filled up to one width with tokens of probability 0."""
    width = max(one.ids.shape[1] for one in members)
    wide = [(0, width - one.ids.shape[1]) for one in members]
    return (
        [torch.nn.functional.pad(one.ids, room) for one, room in zip(members, wide, strict=True)],
        [torch.nn.functional.pad(one.probs, room) for one, room in zip(members, wide, strict=True)],
    )


def transfer(
    ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    rows: Sequence[int],
    mapping: VocabularyMap,
    *,
    temperature: float,
) -> Rows:
    """One model's rows on one text as another model's: q = softmax of the kept logits on the mapped ids.

    Args:
        ids, logits: [m, K] from the likeliest down.
        rows: per row of the receiver [n] the sender's, `NOTHING` for none (see `align_rows`).
        mapping: of the sender's tokens; of two that map to one token the likelier stays.
        temperature: of the softmax.
    """
    taken = np.asarray(rows, dtype=np.int64)
    kept, kept_logits = ids[taken], logits[taken].astype(np.float64)
    legal = np.broadcast_to((taken != NOTHING)[:, None], kept.shape)
    if not mapping.is_identity:
        seen, places = np.unique(kept[legal], return_inverse=True)
        mapped = np.full(kept.shape, NOTHING, dtype=np.int64)
        mapped[legal] = np.array([mapping(int(token)) for token in seen], dtype=np.int64)[places]
        legal = legal & (mapped != NOTHING) & ~_repeated(mapped)
        kept = mapped
    return np.where(legal, kept, 0), softmax(np.where(legal, kept_logits / temperature, -np.inf))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    """Row-wise, summed in float64; a row of minus infinities gives zeros."""
    top = logits.max(axis=1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    return (weights / np.where(total > 0, total, 1.0)).astype(np.float32)


def _repeated(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the same id stands further left in its row."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, axis=1)
    again = np.zeros(ids.shape, dtype=bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    found = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(found, order, again, axis=1)
    return found


def one_hot(rows: Rows, places: Sequence[bool], tokens: Sequence[int]) -> Rows:
    """Rows with all probability on the given token in the marked places.

    FedMKT's fallback where DTW finds no partner. The token is the one that the row predicts: the public code
    takes the one before it, which teaches copying (baselines, section 4d1).
    """
    ids, probs = rows[0].copy(), rows[1].copy()
    marked = np.asarray(places, dtype=bool)
    ids[marked], probs[marked] = 0, 0
    ids[marked, 0], probs[marked, 0] = np.asarray(tokens, dtype=np.int64)[marked], 1
    return ids, probs


def mix(sources: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """Weighted mean of several sources' rows; where a source has no knowledge the others share its weight.

    Returns:
        Each source's tokens beside the others'; where all have the same ones, as with letters, these once.
    """
    shares = np.stack(
        [weight * (probs.sum(axis=1) > 0) for (_, probs), weight in zip(sources, weights, strict=True)]
    )
    total = shares.sum(axis=0)
    shares = shares / np.where(total > 0, total, 1.0)
    ids = [one for one, _ in sources]
    probs = [probs * share[:, None] for (_, probs), share in zip(sources, shares, strict=True)]
    if all(np.array_equal(ids[0], one) for one in ids):
        return ids[0], np.sum(probs, axis=0).astype(np.float32)
    return np.concatenate(ids, axis=1), np.concatenate(probs, axis=1).astype(np.float32)
