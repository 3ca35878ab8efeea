"""Decoding with a key-value cache in which finished rows make room for the next prompt at once.

Another engine would go in here: whatever generates calls `generate` alone, and weights come to it through
`LanguageModel.merged` alone. It would be a field of run.yaml, since it changes numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lada.answers import answer_line_end
from lada.config import GenerationOptions, derive_seed
from lada.models import LanguageModel
from lada.resume import Phase, Resume, Saved, begin
from lada.row_cache import RowCache
from lada.zero import one_pass


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        text: the whole response, what was given of it included; stripped, without EOS and stop string.
        num_tokens: generated tokens, EOS included.
        finished: whether it ended by itself, with ``stop_at_answer`` also by its final answer line; False
            when ``max_new_tokens`` or a stop string ended it, or when the prompt was too long.
        confidence: mean log-probability (nats, temperature 1) of the generated tokens; that of a uniform
            guess where there is none.
        stopped: whether a stop string ended it.
        added: the part of ``text`` that was generated, stripped.
    """

    text: str
    num_tokens: int
    finished: bool
    confidence: float
    stopped: bool = False
    added: str = ""


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    options: GenerationOptions,
    *,
    seed: int | Sequence[int] = 0,
    expected_lengths: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partials: Sequence[str] | None = None,
    stops: Sequence[str | None] | None = None,
    resume: Resume | None = None,
) -> list[Generated]:
    """Answer prompts with the policy, its adapter merged.

    Rows are decoded ``options.batch_size`` side by side, the longest expected first; which rows share a batch
    changes a response in no more than the last bits of its logits. A sampled response depends on ``seed`` and
    on the prompt's place in ``prompts`` alone (with the same reservation). A prompt that leaves no room
    for ``max_new_tokens`` within the model's positions gets an empty unfinished response of 0 tokens.

    Args:
        options: greedy where ``temperature`` is 0.
        seed: of all prompts, or one per prompt: then a response does not depend on its place either.
        expected_lengths: tokens per prompt, e.g. of the last round; None: by the prompts' lengths.
        progress: called with (finished, all) prompts.
        partials: the beginning of each response, as it follows the prompt; tokenised apart from the prompt.
        stops: per prompt a text that ends the response, once something visible stands before it.
        resume: may pause this after any token and go on there.

    Returns:
        One response per prompt, in order.

    Raises:
        Paused: when the stage was warned.
    """
    begun = partials or [""] * len(prompts)
    given = [model.response_ids(text, finished=False) if text else [] for text in begun]
    ids = [model.prompt_ids(prompt) + own for prompt, own in zip(prompts, given, strict=True)]
    stop_at = stops or [None] * len(prompts)
    seeds = [derive_seed(seed, "generate", i) for i in range(len(ids))] if isinstance(seed, int) else seed
    expected = [len(one) for one in ids] if expected_lengths is None else list(expected_lengths)
    assert len(expected) == len(seeds) == len(stop_at) == len(prompts), "one value per prompt"
    tick = progress or (lambda done, total: None)
    phase = begin(resume, "generate", prompts, options, seeds, expected, begun, stop_at)
    if phase.result is not None:
        tick(len(prompts), len(prompts))
        return [Generated(*one) for one in phase.result.values]
    asked = [_Asked(*one) for one in zip(ids, given, stop_at, seeds, strict=True)]
    room = model.max_positions - options.max_new_tokens
    queue = [index for index in range(len(ids)) if len(ids[index]) <= room]
    queue.sort(key=lambda index: (expected[index], len(ids[index])))
    with model.merged():
        found = model.ranks.call(_answer, model, asked, options, queue, phase=phase, tick=tick)
    nothing = Generated("", 0, False, -math.log(model.head_shape[0]))
    results = [found.get(index, nothing) for index in range(len(prompts))]
    phase.finish(lambda: Saved({}, [list(vars(one).values()) for one in results]))
    return results


def _answer(
    model: LanguageModel,
    asked: list[_Asked],
    options: GenerationOptions,
    queue: list[int],
    *,
    phase: Phase | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Generated]:
    """A command: decode prompts, each rank its share of the queue; all ranks make their passes in step.

    Where a pass gathers the weights, a rank that is done makes passes that nobody reads until all are done.
    Choice: so under ZeRO-3, rather than gathering the weights first: they are shared since a GPU does not
    hold them.

    Returns:
        Responses by place, on rank 0.
    """
    ranks, phase = model.ranks, phase or Phase()
    model.network.eval()
    longest = max((len(asked[index].prompt) for index in queue), default=0)
    decoder = _Decoder(model, options, longest)
    work = _Work(asked, options, queue[ranks.index :: ranks.size], decoder)
    saved = ranks.scatter(_parts(phase.point, ranks.size) if ranks.leads else None)
    if saved is not None:
        work.load(saved)
    with torch.no_grad():
        (left,) = ranks.sums(work.left)
        while left:
            work.advance()
            before = left
            left, warned = ranks.sums(work.left, phase.warned)
            for still in range(before - 1, left - 1, -1):
                tick(len(asked) - still, len(asked))
            if warned:
                phase.pause(partial(_joined, ranks.gather(work.save())))
                return {}
    return {index: one for found in ranks.gather(work.results) for index, one in found.items()}


def _joined(parts: Sequence[Saved]) -> Saved:
    """What all ranks saved, as one."""
    tensors = {f"{rank}.{key}": value for rank, one in enumerate(parts) for key, value in one.tensors.items()}
    return Saved(tensors, [one.values for one in parts])


def _parts(saved: Saved | None, size: int) -> Sequence[Saved | None]:
    """The opposite of `_joined`; nothing for any rank where there is nothing."""
    if saved is None:
        return [None] * size
    found: list[dict[str, Tensor]] = [{} for _ in saved.values]
    for key, value in saved.tensors.items():
        rank, _, name = key.partition(".")
        found[int(rank)][name] = value
    return [Saved(tensors, values) for tensors, values in zip(found, saved.values, strict=True)]


def _draws(options: GenerationOptions, seed: int) -> Tensor | None:
    """One uniform number per token of a prompt's response: what sampling needs, whatever the batch."""
    if options.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class _Asked:
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
class _Row:
    """A prompt that is being answered; its newest token is not yet in the cache."""

    index: int
    asked: _Asked
    options: GenerationOptions
    draws: Tensor | None
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0

    @property
    def cached(self) -> int:
        return len(self.asked.prompt) + len(self.tokens) - 1

    def ended(self, model: LanguageModel) -> bool:
        if self.tokens[-1] in model.end_ids or len(self.tokens) >= self.options.max_new_tokens:
            return True
        return self._beyond_stop(model) > 0 or self._beyond_answer(model) > 0

    def result(self, model: LanguageModel) -> Generated:
        finished = self.tokens[-1] in model.end_ids
        tokens = self.tokens[:-1] if finished else self.tokens
        text, added = model.text(self.asked.given + tokens), model.text(tokens)
        stopped, answered = self._beyond_stop(model), self._beyond_answer(model)
        beyond = max(stopped, answered)
        return Generated(
            text[: len(text) - beyond].strip(),
            len(self.tokens),
            finished or answered > 0,
            self.total / len(self.tokens),
            stopped=stopped > 0,
            added=added[: len(added) - beyond].strip(),
        )

    def _beyond_answer(self, model: LanguageModel) -> int:
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

    def _beyond_stop(self, model: LanguageModel) -> int:
        """Characters from the stop string on; 0 where it does not stand in what was generated."""
        if self.asked.stop is None or self.tokens[-1] in model.end_ids:
            return 0
        text = model.text(self.tokens)
        blank = len(text) - len(text.lstrip())
        place = text.find(self.asked.stop, blank + 1)
        return 0 if place < 0 else len(text) - place


@dataclass
class _Work:
    """What is to be answered, what is being answered, what is done.

    Attributes:
        asked: of all prompts.
        queue: places of prompts that wait, the next one last.
        results: of this rank, by place.
    """

    asked: list[_Asked]
    options: GenerationOptions
    queue: list[int]
    decoder: _Decoder
    results: dict[int, Generated] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Prompts that are not done yet."""
        return len(self.queue) + len(self.decoder.rows)

    def advance(self) -> None:
        """One pass, and whoever ends with it leaves."""
        if self.queue and self.decoder.wants_rows():
            self.decoder.admit(self.next_rows())
        elif self.decoder.rows:
            self.decoder.step()
        else:
            self.decoder.keep_step()
        for row in self.decoder.retire():
            self.results[row.index] = row.result(self.decoder.model)

    def next_rows(self) -> list[_Row]:
        """As many waiting prompts as there is room for, in the cache and in one pass."""
        free, limit = self.options.batch_size - len(self.decoder.rows), self.options.prompt_tokens
        new: list[int] = []
        width = 0
        while self.queue and len(new) < free:
            width = max(width, len(self.asked[self.queue[-1]].prompt))
            if new and limit is not None and width * (len(new) + 1) > limit:
                break
            new.append(self.queue.pop())
        return [self._row(index) for index in new]

    def _row(self, index: int) -> _Row:
        asked = self.asked[index]
        return _Row(index, asked, self.options, _draws(self.options, asked.seed))

    def save(self) -> Saved:
        tensors, rows, places = self.decoder.state()
        results = [[index, *vars(one).values()] for index, one in self.results.items()]
        tensors = {key: value.cpu() for key, value in tensors.items()}
        return Saved(tensors, {"queue": self.queue, "results": results, "rows": rows, "places": places})

    def load(self, saved: Saved) -> None:
        values = saved.values
        self.queue = values["queue"]
        self.results = {index: Generated(*one) for index, *one in values["results"]}
        rows = []
        for index, tokens, total in values["rows"]:
            rows.append(self._row(index))
            rows[-1].tokens, rows[-1].total = tokens, total
        self.decoder.load(saved.tensors, rows, values["places"])


class _Decoder:
    """Rows side by side, and the cache that holds their past."""

    def __init__(self, model: LanguageModel, options: GenerationOptions, longest_prompt: int) -> None:
        self.model, self._options = model, options
        self._cache = RowCache(options.batch_size, longest_prompt + options.max_new_tokens)
        self.rows: list[_Row] = []

    def wants_rows(self) -> bool:
        # Choice: an eighth of the rows at a time, since each admission is a forward pass of its own.
        free = self._options.batch_size - len(self.rows)
        return free >= max(1, self._options.batch_size // 8)

    def admit(self, rows: list[_Row]) -> None:
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

    def retire(self) -> list[_Row]:
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

    def load(self, tensors: Mapping[str, Tensor], rows: list[_Row], places: Sequence[int]) -> None:
        """Put a `state` back, with its rows made anew."""
        self._cache.load(tensors, places, self.model.device)
        self.rows = rows

    def _extend(self, rows: list[_Row], ids: Tensor, cache: RowCache, lengths: list[int]) -> None:
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

    def _pick(self, scores: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:
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
