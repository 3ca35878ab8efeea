"""Prompts are answered with texts: a queue of requests, of which each rank decodes its share.

Another engine would go in here: whatever generates calls `generate` alone, and weights come to it through
`LanguageModel.merged` alone. It would be a field of run.yaml, since it changes numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lada.config import GenerationOptions, derive_seed
from lada.decoding import Asked, Decoder, Row, uniform_draws
from lada.errors import ConfigError
from lada.language_model import LanguageModel
from lada.resume import Phase, Resume, Saved, begin


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
        ConfigError: ``max_new_tokens`` leaves no room for any prompt within the model's positions.
        Paused: when the stage was warned.
    """
    room = model.max_positions - options.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens is {options.max_new_tokens}, and the model has {model.max_positions} positions, "
            f"of which a prompt needs some; legal: less than {model.max_positions}"
        )
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
    asked = [Asked(*one) for one in zip(ids, given, stop_at, seeds, strict=True)]
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
    asked: list[Asked],
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
    decoder = Decoder(model, options, longest)
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


@dataclass
class _Work:
    """What is to be answered, what is being answered, what is done.

    Attributes:
        asked: of all prompts.
        queue: places of prompts that wait, the next one last.
        results: of this rank, by place.
    """

    asked: list[Asked]
    options: GenerationOptions
    queue: list[int]
    decoder: Decoder
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
            self.results[row.index] = _response(self.decoder.model, row)

    def next_rows(self) -> list[Row]:
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

    def _row(self, index: int) -> Row:
        asked = self.asked[index]
        return Row(index, asked, self.options, uniform_draws(self.options, asked.seed))

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


def _response(model: LanguageModel, row: Row) -> Generated:
    """What a row that has ended says."""
    finished = row.tokens[-1] in model.end_ids
    tokens = row.tokens[:-1] if finished else row.tokens
    text, added = model.text(row.asked.given + tokens), model.text(tokens)
    stopped, answered = row.beyond_stop(model), row.beyond_answer(model)
    beyond = max(stopped, answered)
    return Generated(
        text[: len(text) - beyond].strip(),
        len(row.tokens),
        finished or answered > 0,
        row.total / len(row.tokens),
        stopped=stopped > 0,
        added=added[: len(added) - beyond].strip(),
    )
