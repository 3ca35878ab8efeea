"""What a model knows of shared texts: cross-entropies and the likeliest tokens' logits, as FedMKT sends them.

``seq``: at every row of the response the K likeliest tokens. ``letter``: at the one row before the option's
letter the four letters (baselines, section 4e). Everything is taken in float32 and checked to be finite
before it is sent; logits are sent in float16, relative to the largest of their row, where float16 is finest
and which softmax does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lada.errors import ModelError
from lada.forward import Pair, forward_gathered, forward_top, micro_batches
from lada.language_model import LanguageModel
from lada.payloads import Origin
from lada.ranks import bundles, each
from lada.resume import Phase, Resume, Saved, begin
from lada.training import Example

_LEAST_LOGIT = -60_000.0
"""Within float16; a token this far below the likeliest has probability 0 anyway."""
Looked = tuple[Tensor, Tensor, Tensor, Tensor]
"""Ids [n, K], their log-probabilities, those of the response tokens [n], each row's sequence."""
Look = Callable[..., Looked]
"""(model, sequences, further arguments) -> what was seen; of this module, so that every rank finds it."""


@dataclass(frozen=True)
class Knowledge:
    """One model's knowledge of N texts.

    Attributes:
        ce: cross-entropy of each text in nats per character [N], float32.
        lengths: rows of each text [N].
        logits: relative to the largest of the row [sum of lengths, K], float16.
        ids: tokens of the model's own vocabulary [sum of lengths, K], int32; None for the four letters, which
            stand in the order A to D.
    """

    ce: NDArray[np.float32]
    lengths: tuple[int, ...]
    logits: NDArray[np.float16]
    ids: NDArray[np.int32] | None

    def rows(self, text: int) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """Ids and logits [n, K] of one text."""
        first = sum(self.lengths[:text])
        part = slice(first, first + self.lengths[text])
        ids = None if self.ids is None else self.ids[part].astype(np.int64)
        return ids, self.logits[part].astype(np.float32)

    def tensors(self) -> dict[str, Tensor]:
        """As it is sent: 4 bytes a text, 2 (letters) or 6 bytes an entry; lengths follow from the texts."""
        found = {"ce": torch.from_numpy(self.ce), "logits": torch.from_numpy(self.logits)}
        return found if self.ids is None else {**found, "ids": torch.from_numpy(self.ids)}


def received(
    arrays: Mapping[str, NDArray[np.generic]],
    lengths: Sequence[int],
    *,
    num_tokens: int | None,
    origin: Origin,
) -> Knowledge:
    """Knowledge that another party sent; the exchange has checked types, shapes, finiteness and bounds.

    Args:
        arrays: as `Knowledge.tensors`.
        lengths: rows of each text under the sender's tokenizer.
        num_tokens: size of the sender's tokenizer; None where the letters alone are sent.
        origin: of the file.

    Raises:
        ExchangeError: checks ``tensor-keys``, ``item-count`` or ``token-ids``.
    """
    wanted = {"ce", "logits"} | ({"ids"} if num_tokens is not None else set())
    if not wanted <= set(arrays):
        raise origin.error("tensor-keys", f"holds {sorted(arrays)}, expected {sorted(wanted)}")
    ce, logits = arrays["ce"].astype(np.float32), arrays["logits"].astype(np.float16)
    if (len(ce), len(logits)) != (len(lengths), sum(lengths)):
        detail = f"{len(ce)} texts of {len(logits)} rows, expected {len(lengths)} of {sum(lengths)}"
        raise origin.error("item-count", detail)
    ids = arrays["ids"].astype(np.int32) if num_tokens is not None else None
    if ids is not None and num_tokens is not None and ids.size and int(ids.max()) >= num_tokens:
        raise origin.error("token-ids", f"token {int(ids.max())}; the sender's tokenizer has {num_tokens}")
    if ids is None and logits.shape[1] != 4:
        raise origin.error("tensor-schema", f"{logits.shape[1]} letters instead of 4")
    return Knowledge(ce, tuple(lengths), logits, ids)


def top_knowledge(
    model: LanguageModel,
    examples: Sequence[Example],
    characters: Sequence[int],
    *,
    num_top: int,
    num_tokens: int,
    micro_tokens: int,
    head_chunk: int,
    resume: Resume | None = None,
) -> Knowledge:
    """The likeliest tokens at every row of each example's one response.

    The cross-entropy is the total of the response in nats, per character: comparable between tokenizers and
    free of the prompt's length (baselines, section 4d3).

    Args:
        characters: of each response's text [N].
        num_top: K, cut to ``num_tokens``.
        num_tokens: size of the tokenizer.
        micro_tokens, head_chunk: see `lada.training.fit`.
        resume: may pause this after any group of passes and go on there.

    Raises:
        ModelError: when a value is not finite; names the samples.
        Paused: when the stage was warned.
    """
    top = min(num_top, num_tokens)

    request = examples, characters, top, num_tokens, micro_tokens, head_chunk
    phase = begin(resume, "top_knowledge", *request)
    look = _look_at_top, top, num_tokens, head_chunk
    return _take(model, examples, characters, look, micro_tokens, phase)


def letter_knowledge(
    model: LanguageModel,
    examples: Sequence[Example],
    letters: Sequence[int],
    *,
    micro_tokens: int,
    head_chunk: int,
    resume: Resume | None = None,
) -> Knowledge:
    """The four letters at the one row of each example's response, which is the label's letter.

    The cross-entropy is that of the label's letter among the whole vocabulary.

    Args:
        letters: tokens of A to D.
        micro_tokens, head_chunk: see `lada.training.fit`.
        resume: may pause this after any group of passes and go on there.

    Raises:
        ModelError: when a value is not finite; names the samples.
        Paused: when the stage was warned.
    """
    phase = begin(resume, "letter_knowledge", examples, letters, micro_tokens, head_chunk)
    look = _look_at_letters, list(letters), head_chunk
    whole = _take(model, examples, [1] * len(examples), look, micro_tokens, phase)
    return Knowledge(whole.ce, whole.lengths, whole.logits, None)


def _look_at_top(
    model: LanguageModel, pairs: Sequence[Pair], top: int, num_tokens: int, head_chunk: int
) -> Looked:
    found = forward_top(model, pairs, top, num_tokens=num_tokens, head_chunk=head_chunk)
    ids, best, hard, segment = (one.cpu() for one in found)
    return ids, best, hard, segment


def _look_at_letters(
    model: LanguageModel, pairs: Sequence[Pair], letters: Sequence[int], head_chunk: int
) -> Looked:
    options = torch.tensor([letters])
    found = forward_gathered(model, pairs, [options] * len(pairs), head_chunk=head_chunk)
    hard, best, segment = (one.cpu() for one in found)
    return options.expand(len(pairs), -1), best, hard, segment


@dataclass
class _Taken:
    """Texts that were looked at, by length, then id, so that the order of the examples does not matter.

    Attributes:
        values: per text its cross-entropy and, to be checked, the sum of its logits before they are rounded.
        logits, ids: per text [rows, K], as they are kept.
    """

    values: list[tuple[float, float]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)

    def add(self, group: Sequence[int], seen: Looked, characters: Sequence[int]) -> None:
        """Keep what was seen of the texts of one group."""
        top, best, hard, segment = seen
        relative = best - best.amax(1, keepdim=True)
        for place, i in enumerate(group):
            mine = segment == place
            ce = -float(hard[mine].double().sum()) / max(1, characters[i])
            self.values.append((ce, float(relative[mine].sum())))
            self.logits.append(relative[mine].clamp(min=_LEAST_LOGIT).to(torch.float16))
            self.ids.append(top[mine].to(torch.int32))

    def state(self) -> Saved:
        lengths = [len(one) for one in self.ids]
        tensors = {"logits": torch.cat(self.logits), "ids": torch.cat(self.ids)} if self.ids else {}
        return Saved(tensors, {"values": self.values, "lengths": lengths})

    def load(self, saved: Saved) -> None:
        self.values, lengths = saved.values["values"], saved.values["lengths"]
        if lengths:
            self.logits = list(torch.split(saved.tensors["logits"], lengths))
            self.ids = list(torch.split(saved.tensors["ids"], lengths))


def _take(
    model: LanguageModel,
    examples: Sequence[Example],
    characters: Sequence[int],
    look: tuple[Look, *tuple[object, ...]],
    micro_tokens: int,
    phase: Phase,
) -> Knowledge:
    sizes = [len(example.prompt) + len(example.responses[0]) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (sizes[i], examples[i].id))
    taken = _Taken()
    if (saved := phase.result or phase.point) is not None:
        taken.load(saved)
    rest = order[len(taken.values) :]
    model.network.eval()
    with torch.no_grad():
        groups = micro_batches(model, rest, [[sizes[i]] for i in rest], micro_tokens)
        for shares in bundles(groups, model.ranks.size):
            pairs = [[(examples[i].prompt, examples[i].responses[0]) for i in group] for group in shares]
            seen = model.ranks.call(each, model, look[0], pairs, *look[1:])
            for group, one in zip(shares, seen, strict=True):
                taken.add(group, one, characters)
            phase.safe_point(taken.state)
    phase.finish(taken.state)
    return _in_order(taken, order, examples)


def _in_order(taken: _Taken, order: Sequence[int], examples: Sequence[Example]) -> Knowledge:
    """What was taken, in the order of the examples."""
    place = {i: number for number, i in enumerate(order)}
    places = [place[i] for i in range(len(examples))]
    _check_finite([sum(taken.values[one]) for one in places], examples)
    logits = torch.cat([taken.logits[one] for one in places]) if places else torch.zeros(0, 1).half()
    ids = torch.cat([taken.ids[one] for one in places]) if places else torch.zeros(0, 1).int()
    return Knowledge(
        np.array([taken.values[one][0] for one in places], dtype=np.float32),
        tuple(len(example.responses[0]) for example in examples),
        logits.numpy(),
        ids.numpy(),
    )


def _check_finite(values: Sequence[float], examples: Sequence[Example]) -> None:
    guilty = [example.id for value, example in zip(values, examples, strict=True) if not np.isfinite(value)]
    if guilty:
        raise ModelError(f"logits of public texts are not finite numbers, at samples {', '.join(guilty)}")
