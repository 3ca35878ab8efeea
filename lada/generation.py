"""Decoding with a key-value cache in which finished rows make room for the next prompt at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lada.config import GenerationOptions, derive_seed
from lada.models import LanguageModel
from lada.resume import Resume, Saved, begin
from lada.row_cache import RowCache


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        text: stripped, without EOS.
        num_tokens: generated tokens, EOS included.
        finished: False when ``max_new_tokens`` ended it, or when the prompt was too long to be answered.
        confidence: mean log-probability (nats, temperature 1) of the generated tokens; that of a uniform
            guess where there is none.
    """

    text: str
    num_tokens: int
    finished: bool
    confidence: float


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    options: GenerationOptions,
    *,
    seed: int = 0,
    expected_lengths: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: Resume | None = None,
) -> list[Generated]:
    """Answer prompts with the policy, its adapter merged.

    Rows are decoded ``options.batch_size`` side by side, the longest expected first; which rows share a batch
    changes a response in no more than the last bits of its logits. A sampled response depends on ``seed`` and
    on the prompt's place in ``prompts`` alone (with the same reservation). A prompt that leaves no room
    for ``max_new_tokens`` within the model's positions gets an empty unfinished response of 0 tokens.

    Args:
        options: greedy where ``temperature`` is 0.
        expected_lengths: tokens per prompt, e.g. of the last round; None: by the prompts' lengths.
        progress: called with (finished, all) prompts.
        resume: may pause this after any token and go on there.

    Returns:
        One response per prompt, in order.

    Raises:
        Paused: when the stage was warned.
    """
    ids = [model.prompt_ids(prompt) for prompt in prompts]
    expected = [len(one) for one in ids] if expected_lengths is None else list(expected_lengths)
    assert len(expected) == len(prompts), "one expected length per prompt"
    tick = progress or (lambda done, total: None)
    phase = begin(resume, "generate", prompts, options, seed, expected)
    if phase.result is not None:
        tick(len(prompts), len(prompts))
        return [Generated(*one) for one in phase.result.values]
    room = model.max_positions - options.max_new_tokens
    queue = [index for index in range(len(ids)) if len(ids[index]) <= room]
    queue.sort(key=lambda index: (expected[index], len(ids[index])))
    results = [Generated("", 0, False, -math.log(len(model.head_weight)))] * len(prompts)
    model.network.eval()
    with torch.no_grad(), model.merged():
        decoder = _Decoder(model, options, max((len(ids[index]) for index in queue), default=0))
        work = _Work(ids, options, seed, queue, results, decoder)
        if phase.point is not None:
            work.load(phase.point)
        while work.queue or decoder.rows:
            if work.queue and decoder.wants_rows():
                decoder.admit(work.next_rows())
            else:
                decoder.step()
            for row in decoder.retire():
                work.done += 1
                work.results[row.index] = row.result(model)
                tick(work.done, len(prompts))
            phase.safe_point(work.save)
    results = work.results  # not all of `work`, which holds the cache
    phase.finish(lambda: Saved({}, [list(vars(one).values()) for one in results]))
    return results


def _draws(options: GenerationOptions, seed: int, index: int) -> Tensor | None:
    """One uniform number per token of a prompt's response: what sampling needs, whatever the batch."""
    if options.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, "generate", index))
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


@dataclass
class _Row:
    """A prompt that is being answered; its newest token is not yet in the cache."""

    index: int
    prompt: list[int]
    limit: int
    draws: Tensor | None
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0

    @property
    def cached(self) -> int:
        return len(self.prompt) + len(self.tokens) - 1

    def result(self, model: LanguageModel) -> Generated:
        finished = self.tokens[-1] == model.eos_id
        text = model.text(self.tokens[:-1] if finished else self.tokens).strip()
        return Generated(text, len(self.tokens), finished, self.total / len(self.tokens))


@dataclass
class _Work:
    """What is to be answered, what is being answered, what is done.

    Attributes:
        ids: token ids of all prompts.
        queue: places of prompts that wait, the next one last.
        results: by place; those that are not done yet hold anything.
    """

    ids: list[list[int]]
    options: GenerationOptions
    seed: int
    queue: list[int]
    results: list[Generated]
    decoder: _Decoder
    done: int = field(init=False)

    def __post_init__(self) -> None:
        self.done = len(self.ids) - len(self.queue)

    def next_rows(self) -> list[_Row]:
        """As many waiting prompts as there is room for."""
        free = self.options.batch_size - len(self.decoder.rows)
        new, self.queue = self.queue[: -free - 1 : -1], self.queue[:-free]
        return [self._row(index) for index in new]

    def _row(self, index: int) -> _Row:
        draws = _draws(self.options, self.seed, index)
        return _Row(index, self.ids[index], self.options.max_new_tokens, draws)

    def save(self) -> Saved:
        tensors, rows, places = self.decoder.state()
        results = [list(vars(one).values()) for one in self.results]
        return Saved(tensors, {"queue": self.queue, "results": results, "rows": rows, "places": places})

    def load(self, saved: Saved) -> None:
        values = saved.values
        self.queue, self.results = values["queue"], [Generated(*one) for one in values["results"]]
        rows = []
        for index, tokens, total in values["rows"]:
            rows.append(self._row(index))
            rows[-1].tokens, rows[-1].total = tokens, total
        self.decoder.load(saved.tensors, rows, values["places"])
        self.done = len(self.ids) - len(self.queue) - len(rows)


class _Decoder:
    """Rows side by side, and the cache that holds their past."""

    def __init__(self, model: LanguageModel, options: GenerationOptions, longest_prompt: int) -> None:
        self._model, self._options = model, options
        self._cache = RowCache(options.batch_size, longest_prompt + options.max_new_tokens)
        self.rows: list[_Row] = []

    def wants_rows(self) -> bool:
        # Choice: an eighth of the rows at a time, since each admission is a forward pass of its own.
        free = self._options.batch_size - len(self.rows)
        return free >= max(1, self._options.batch_size // 8)

    def admit(self, rows: list[_Row]) -> None:
        """Read new prompts and pick the first token of each."""
        width = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), width), self._model.pad_id, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, width - len(row.prompt) :] = torch.tensor(row.prompt)
        cache = RowCache(len(rows), width)
        cache.rows = len(rows)
        self._extend(rows, ids, cache, [len(row.prompt) for row in rows])
        self._cache.admit(cache)
        self.rows += rows

    def step(self) -> None:
        """One more token for every row."""
        cached = [row.cached for row in self.rows]
        self._cache.trim(max(cached))
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])
        self._extend(self.rows, ids, self._cache, [length + 1 for length in cached])

    def retire(self) -> list[_Row]:
        """Take out rows that are finished; the last rows move into their places."""
        eos = self._model.eos_id
        ended = [i for i, r in enumerate(self.rows) if r.tokens[-1] == eos or len(r.tokens) >= r.limit]
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

    def load(self, tensors: Mapping[str, Tensor], rows: list[_Row], places: Sequence[int]) -> None:
        """Put a `state` back, with its rows made anew."""
        self._cache.load(tensors, places, self._model.device)
        self.rows = rows

    def _extend(self, rows: list[_Row], ids: Tensor, cache: RowCache, lengths: list[int]) -> None:
        """Append ``ids`` [rows, S] to ``cache``, whose rows then have ``lengths``; pick the next tokens."""
        model, columns = self._model, ids.shape[1]
        width = cache.get_seq_length() + columns
        begins = width - torch.tensor(lengths)[:, None]
        column = torch.arange(width)[None]
        mask = column >= begins
        positions = (column[:, -columns:] - begins).clamp(min=0)
        device = model.device
        hidden = model.extend(ids.to(device), mask.to(device), positions.to(device), cache)
        cache.advance(columns)
        scores = F.linear(hidden, model.head_weight).float()
        if model.softcap is not None:
            scores = scores.div_(model.softcap).tanh_().mul_(model.softcap)
        tokens, log_probs = self._pick(scores, rows)
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            row.tokens.append(token)
            row.total += log_prob

    def _pick(self, scores: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        """Next token and its log-probability at temperature 1, from float32 scores [rows, V]."""
        top, best = scores.max(1, keepdim=True)
        if self._options.temperature > 0:
            draws = [row.draws[len(row.tokens)] for row in rows if row.draws is not None]
            best = _sample(scores, self._options.temperature, torch.stack(draws).to(scores.device))
        chosen = scores.gather(1, best) - top
        total = scores.sub_(top).exp_().sum(1, keepdim=True)
        return best[:, 0], (chosen - total.log())[:, 0]


def _sample(scores: Tensor, temperature: float, draws: Tensor) -> Tensor:
    """Tokens [rows, 1] by inversion: the first one whose cumulative probability exceeds the draw."""
    cumulative = F.softmax(scores / temperature, dim=1, dtype=torch.float64).cumsum(1)
    wanted = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).clamp_(max=scores.shape[1] - 1)
