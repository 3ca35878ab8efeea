"""Decoding, rows side by side: one key-value cache, where finished rows make room for the next at once.

A `Row` knows its tokens and where its response ends; `lada.generation` makes responses of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lada.answers import answer_line_end
from lada.config import GenerationOptions
from lada.language_model import LanguageModel
from lada.row_cache import RowCache
from lada.zero import one_pass


@dataclass(frozen=True)
class Asked:
    """What is asked of one row.

    Attributes:
        prompt: token ids; they end with ``given``, the tokens of the response that were there before.
        stop: text that ends the response.
        seed: of the response's draws.
    """

    prompt: list[int]
    given: list[int]
    stop: str | None
    seed: int


@dataclass
class Row:
    """A prompt that is being answered; its newest token is not yet in the cache."""

    index: int
    asked: Asked
    options: GenerationOptions
    draws: Tensor | None
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0

    @property
    def cached(self) -> int:
        """Tokens of the row that are in the cache."""
        return len(self.asked.prompt) + len(self.tokens) - 1

    def ended(self, model: LanguageModel) -> bool:
        """Whether the newest token is the last one."""
        if self.tokens[-1] in model.end_ids or len(self.tokens) >= self.options.max_new_tokens:
            return True
        return self.beyond_stop(model) > 0 or self.beyond_answer(model) > 0

    def beyond_answer(self, model: LanguageModel) -> int:
        """Characters from the end of the final answer line on, where it ends the response; else 0.

        A prompt with a stop string ends with that alone. A line is looked at when its end has come.
        """
        if not self.options.stop_at_answer or self.asked.stop is not None or self.tokens[-1] in model.end_ids:
            return 0
        if "\n" not in model.text(self.tokens[-1:]):
            return 0
        text = model.text(self.tokens)
        end = answer_line_end(text)
        return 0 if end is None else len(text) - end

    def beyond_stop(self, model: LanguageModel) -> int:
        """Characters from the stop string on; 0 where it does not stand in what was generated."""
        if self.asked.stop is None or self.tokens[-1] in model.end_ids:
            return 0
        text = model.text(self.tokens)
        blank = len(text) - len(text.lstrip())
        place = text.find(self.asked.stop, blank + 1)
        return 0 if place < 0 else len(text) - place


class Decoder:
    """Rows side by side, and the cache that holds their past."""

    def __init__(self, model: LanguageModel, options: GenerationOptions, longest_prompt: int) -> None:
        self.model, self._options = model, options
        self._cache = RowCache(options.batch_size, longest_prompt + options.max_new_tokens)
        self.rows: list[Row] = []

    def wants_rows(self) -> bool:
        """Whether so many rows are free that an admission is worth its pass."""
        # Choice: an eighth of the rows at a time, since each admission is a forward pass of its own.
        free = self._options.batch_size - len(self.rows)
        return free >= max(1, self._options.batch_size // 8)

    def admit(self, rows: list[Row]) -> None:
        """Read new prompts and pick the first token of each."""
        width = max(len(row.asked.prompt) for row in rows)
        ids = torch.full((len(rows), width), self.model.pad_id, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, width - len(row.asked.prompt) :] = torch.tensor(row.asked.prompt)
        cache = RowCache(len(rows), width)
        cache.rows = len(rows)
        self._extend(rows, ids, cache, [len(row.asked.prompt) for row in rows])
        self._cache.admit(cache)
        self.rows += rows

    def step(self) -> None:
        """One more token for every row."""
        cached = [row.cached for row in self.rows]
        self._cache.trim(max(cached))
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])
        self._extend(self.rows, ids, self._cache, [length + 1 for length in cached])

    def keep_step(self) -> None:
        """A pass that nobody reads, where the other ranks' passes need this one's share of the weights."""
        if self.model.ranks.shards:
            one = torch.full((1, 1), self.model.pad_id, device=self.model.device)
            cache = RowCache(1, 1)
            cache.rows = 1
            _next_scores(
                self.model, one, torch.ones_like(one, dtype=torch.bool), torch.zeros_like(one), cache
            )

    def retire(self) -> list[Row]:
        """Take out rows that are finished; the last rows move into their places."""
        ended = [place for place, row in enumerate(self.rows) if row.ended(self.model)]
        gone = [self.rows[place] for place in ended]
        for place in reversed(ended):
            self._cache.move_row(len(self.rows) - 1, place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()
        self._cache.rows = len(self.rows)
        return gone

    def state(self) -> tuple[dict[str, Tensor], list[list[Any]], list[int]]:
        """Cache, what was generated so far in each row, and where the cache's content stands."""
        tensors, places = self._cache.state()
        return tensors, [[row.index, row.tokens, row.total] for row in self.rows], places

    def load(self, tensors: Mapping[str, Tensor], rows: list[Row], places: Sequence[int]) -> None:
        """Put a `state` back, with its rows made anew."""
        self._cache.load(tensors, places, self.model.device)
        self.rows = rows

    def _extend(self, rows: list[Row], ids: Tensor, cache: RowCache, lengths: list[int]) -> None:
        """Append ``ids`` [rows, S] to ``cache``, whose rows then have ``lengths``; pick the next tokens."""
        model, columns = self.model, ids.shape[1]
        width = cache.get_seq_length() + columns
        begins = width - torch.tensor(lengths)[:, None]
        column = torch.arange(width)[None]
        mask = column >= begins
        positions = (column[:, -columns:] - begins).clamp(min=0)
        device = model.device
        scores = _next_scores(model, ids.to(device), mask.to(device), positions.to(device), cache)
        cache.advance(columns)
        if model.softcap is not None:
            scores = scores.div_(model.softcap).tanh_().mul_(model.softcap)
        tokens, log_probs = self._pick(scores, rows)
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            row.tokens.append(token)
            row.total += log_prob

    def _pick(self, scores: Tensor, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Next token and its log-probability at temperature 1, from float32 scores [rows, V]."""
        top, best = scores.max(1, keepdim=True)
        if self._options.temperature > 0:
            draws = [row.draws[len(row.tokens)] for row in rows if row.draws is not None]
            options, drawn = self._options, torch.stack(draws).to(scores.device)
            best = _sample(scores, options.temperature, drawn, top_k=options.top_k, top_p=options.top_p)
        chosen = scores.gather(1, best) - top
        total = scores.sub_(top).exp_().sum(1, keepdim=True)
        return best[:, 0], (chosen - total.log())[:, 0]


@one_pass
def _next_scores(
    model: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: RowCache
) -> Tensor:
    """Scores [rows, V] in float32, before any cap, of the token after each row of ``ids``."""
    return model.with_head(F.linear, model.extend(ids, mask, positions, cache)).float()


def _sample(
    scores: Tensor, temperature: float, draws: Tensor, *, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Tokens [rows, 1] by inversion: the first one whose cumulative probability exceeds the draw."""
    probabilities = F.softmax(scores / temperature, dim=1, dtype=torch.float64)
    if top_k is not None or top_p < 1:
        probabilities = _likeliest(probabilities, top_k, top_p)
    cumulative = probabilities.cumsum(1)
    wanted = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).clamp_(max=scores.shape[1] - 1)


def _likeliest(probabilities: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """``probabilities`` [rows, V] with 0 for all but the ``top_k`` likeliest, then all but a share ``top_p``.

    Kept is the smallest set of tokens that holds at least the share ``top_p`` of what ``top_k`` left; tokens
    as likely as the last one that is kept are kept too.
    """
    vocabulary = probabilities.shape[1]
    ranked = probabilities.topk(min(top_k or vocabulary, vocabulary), dim=1).values
    before = ranked.cumsum(1) - ranked
    outside = before >= top_p * ranked.sum(1, keepdim=True)
    outside[:, 0] = False
    least = ranked.masked_fill(outside, torch.inf).amin(1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def uniform_draws(options: GenerationOptions, seed: int) -> Tensor | None:
    """One uniform number per token of a prompt's response: what sampling needs, whatever the batch."""
    if options.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)
