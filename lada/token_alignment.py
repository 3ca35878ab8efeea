"""Two tokenizers on one text: which rows of logits speak of the same place, and which tokens mean the same.

FedMKT's alignment (baselines, section 4) without the traps of its public code: special tokens and padded
embedding rows map to nothing, the vocabulary map is made only for tokens that occur, and what depends on
texts and tokenizers alone is found once. Its alternative ``greedy_dp`` is left out: it averages logits of
different positions and treats its borders unequally.

A *row* of logits predicts the next token. Row 0 of a response stands at the end of the prompt, row t after
its t-th token; the last row predicts the end-of-sequence token.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lada.vocabulary import Cut, Vocabulary

Align = Literal["offset", "dtw"]
Stored = dict[str, dict[str, dict[str, Any]]]
"""``maps``: pair of tokenizers -> token -> token; ``rows``: pair and kind -> digest of a text -> rows."""
NOTHING = -1
"""No row, no token."""


# -- tokens to tokens


class VocabularyMap:
    """M of the method: a token of one vocabulary as one token of another; made when asked, remembered.

    The token of the same text if there is one, else the one at the least edit distance, the first of several.
    Lengths bound the distance from below, so most of the vocabulary is never compared.

    Args:
        known: answers of earlier rounds for these two tokenizers, extended in place.
    """

    def __init__(
        self, source: Vocabulary, target: Vocabulary, known: MutableMapping[int, int] | None = None
    ) -> None:
        self.source, self.target = source, target
        self.known: MutableMapping[int, int] = {} if known is None else known

    @property
    def is_identity(self) -> bool:
        """Whether both vocabularies are one."""
        return self.source.digest == self.target.digest

    def __call__(self, token: int) -> int:
        """The target's token, `NOTHING` for one that stands for no text."""
        if token not in self.known:
            self.known[token] = self._find(token)
        return self.known[token]

    def _find(self, token: int) -> int:
        if self.is_identity:
            return token
        if token == self.source.eos_id:
            return self.target.eos_id
        text = self.source.text(token)
        if not text:
            return NOTHING
        same = self.target.by_text.get(text)
        return nearest(text, self.target) if same is None else same


def nearest(text: str, vocabulary: Vocabulary) -> int:
    """The token at the least edit distance from ``text``, the first of several; `NOTHING` without any."""
    best: tuple[float, int] = (float("inf"), NOTHING)
    for length in sorted(vocabulary.by_length, key=lambda length: abs(length - len(text))):
        if abs(length - len(text)) > best[0]:
            break
        tokens, codes = vocabulary.by_length[length]
        distances = _edit_distances(text, codes)
        least = int(distances.min())
        best = min(best, (least, int(tokens[distances == least].min())))
    return best[1]


def _edit_distances(text: str, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Edit distances [N] between a text and N texts of one length, given as code points [length, N]."""
    length, count = codes.shape
    previous = np.repeat(np.arange(length + 1, dtype=np.int32)[:, None], count, axis=1)
    for row, char in enumerate(text, start=1):
        current = np.empty_like(previous)
        current[0] = row
        differ = codes != ord(char)
        for column in range(1, length + 1):
            least = np.minimum(previous[column], current[column - 1]) + 1
            np.minimum(least, previous[column - 1] + differ[column - 1], out=current[column])
        previous = current
    last: NDArray[np.int32] = previous[-1]
    return last


@lru_cache(maxsize=2**20)
def edit_distance(a: str, b: str) -> int:
    """Least number of characters to insert, delete or replace."""
    previous = list(range(len(b) + 1))
    for row, char in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (char != other)))
        previous = current
    return previous[-1]


# -- rows to rows


def offset_alignment(blend_ends: Sequence[int], base_ends: Sequence[int]) -> list[int]:
    """Per base token the blending token that ends at the same place, `NOTHING` where none does.

    Of several tokens that end at one place (SentencePiece's own leading space, parts of a character) the last
    counts: what follows it is new text.
    """
    places = {end: place for place, end in enumerate(blend_ends)}
    last = {end: place for place, end in enumerate(base_ends)}
    return [places.get(end, NOTHING) if last[end] == i else NOTHING for i, end in enumerate(base_ends)]


def dtw_alignment(blend: Sequence[str], base: Sequence[str]) -> tuple[list[list[int]], int]:
    """Dynamic time warping by edit distance: C[j,i] = ED + min(C[j-1,i-1], C[j-1,i], C[j,i-1]).

    Ties on the way back: diagonal, then a step of the blending side, then one of the base side.

    Returns:
        J: per base token the blending tokens matched to it, in order; and the total cost.
    """
    if not blend or not base:
        return [[] for _ in base], 0
    costs: list[list[int]] = []
    for j, token in enumerate(blend):
        row: list[int] = []
        for i, other in enumerate(base):
            ways = [costs[j - 1][i - 1]] if i and j else []
            ways += [costs[j - 1][i]] if j else []
            ways += [row[i - 1]] if i else []
            row.append(edit_distance(token, other) + min(ways, default=0))
        costs.append(row)
    matched: list[list[int]] = [[] for _ in base]
    j, i = len(blend) - 1, len(base) - 1
    while True:
        matched[i].insert(0, j)
        if not i and not j:
            return matched, costs[-1][-1]
        steps = [(j - 1, i - 1), (j - 1, i), (j, i - 1)]
        j, i = min((step for step in steps if min(step) >= 0), key=lambda step: costs[step[0]][step[1]])


def align_rows(blend: Cut, base: Cut, kind: Align, mapping: VocabularyMap) -> list[int]:
    """Per base row (one more than base tokens) the blending row that predicts from the same place.

    Row 0 of both stands at the end of the prompt, the same text for all.

    Args:
        kind: ``offset``: rows after equal prefixes; ``dtw``: rows after tokens that `dtw_alignment` matches
            one to one and that are the same text or map to each other.

    Returns:
        Rows [base tokens + 1], `NOTHING` where there is none.
    """
    if mapping.is_identity:
        return list(range(len(base.ids) + 1))
    if kind == "offset":
        return offset_alignment((0, *blend.ends), (0, *base.ends))
    rows = [0]
    matched, _ = dtw_alignment(blend.texts, base.texts)
    for i, places in enumerate(matched):
        j = places[0] if len(places) == 1 else NOTHING
        fits = j != NOTHING and (blend.texts[j] == base.texts[i] or mapping(blend.ids[j]) == base.ids[i])
        rows.append(j + 1 if fits else NOTHING)
    return rows


class Aligner:
    """A party's alignments with all other tokenizers.

    They depend on texts and tokenizers alone, so they are remembered from round to round.

    Args:
        own: the party's vocabulary. kind: see `align_rows`.
        stored: an earlier `state`.
    """

    def __init__(self, own: Vocabulary, kind: Align, stored: Stored | None = None) -> None:
        self.own, self._kind = own, kind
        found = stored or {}
        self._maps = {
            key: {int(token): other for token, other in known.items()}
            for key, known in found.get("maps", {}).items()
        }
        self._rows = {key: dict(rows) for key, rows in found.get("rows", {}).items()}

    def mapping(self, other: Vocabulary) -> VocabularyMap:
        """The map from another vocabulary to the own one."""
        return VocabularyMap(other, self.own, self._maps.setdefault(self._key(other), {}))

    def rows(self, other: Vocabulary, text: str) -> list[int]:
        """`align_rows` of a text, the other model blending, the own one base."""
        known = self._rows.setdefault(f"{self._key(other)}-{self._kind}", {})
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if name not in known:
            known[name] = align_rows(other.cut(text), self.own.cut(text), self._kind, self.mapping(other))
        found: list[int] = known[name]
        return found

    def state(self) -> Stored:
        """All that was found so far, as JSON holds it."""
        maps = {key: {str(token): other for token, other in one.items()} for key, one in self._maps.items()}
        return {"maps": maps, "rows": self._rows}

    def _key(self, other: Vocabulary) -> str:
        return f"{other.digest}-{self.own.digest}"
