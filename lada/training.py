"""One training loop for every method: preference pairs, weighted groups of pairs and plain fine-tuning.

A "batch" is one optimiser step, all of its micro-batches together: the weights are constant inside it, so the
losses that it reports are the batch losses of the paper's batch-level reward (method, section 4.10).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lada.config import TrainOptions, derive_seed
from lada.errors import ModelError
from lada.forward import Ids, Pair, forward_gathered, forward_log_probs, micro_batches
from lada.language_model import LanguageModel
from lada.losses import PairLoss, SoftLoss
from lada.optimiser import close_optimiser, open_optimiser
from lada.ranks import bundles, each
from lada.resume import Resume, Saved, Stateful, begin
from lada.soft_targets import SoftTargets, padded
from lada.training_state import StepLog, TermLoss, TrainingState

Loss = PairLoss | SoftLoss


@dataclass(frozen=True)
class Term:
    """One loss term of an example.

    Attributes:
        partner: the other party of the pair, or what a log calls this term.
        chosen, rejected: indexes into the example's responses; no ``rejected`` for cross-entropy.
        weight: w of Eq. 4.
    """

    partner: str
    chosen: int
    rejected: int | None
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """A prompt, its responses (each is forwarded once, however many terms use it) and the loss terms.

    Attributes:
        prompt: token ids, BOS included where the model has one.
        responses: token ids of each response, EOS included where the response ended by itself.
        reference: summed log-probability of each response under the reference policy.
        soft: for `SoftLoss`, what the rows of the one response learn beside its own tokens.
    """

    id: str
    prompt: Ids
    responses: tuple[Ids, ...]
    terms: tuple[Term, ...]
    reference: tuple[float, ...] | None = None
    soft: SoftTargets | None = None


_Placed = tuple[int, Term, int]
"""A term of the n-th example of a micro-batch, and where that example's responses begin in it."""


@dataclass(frozen=True)
class Hooks:
    """What a caller does around optimiser steps.

    Attributes:
        keep: may drop examples of a batch right before its forward pass; an empty batch makes no step, but
            counts as one of ``max_steps``. It may run phases; ``memory`` must not change before they end.
        after_step: called after each optimiser step.
        memory: all that these two change, so that training can be resumed; None: nothing.
    """

    keep: Callable[[list[Example]], list[Example]] | None = None
    after_step: Callable[[StepLog], None] | None = None
    memory: Stateful | None = None


NO_HOOKS = Hooks()


def fit(
    model: LanguageModel,
    examples: Sequence[Example],
    options: TrainOptions,
    loss: Loss,
    *,
    learning_rate: float,
    seed: int,
    head_chunk: int = 256,
    hooks: Hooks = NO_HOOKS,
    resume: Resume | None = None,
) -> list[StepLog]:
    """Train ``model`` in place.

    The objective of a step is the mean over its examples of the weighted sum of their terms (Eq. 4, divided
    by the number of distinct samples; Eq. 3 is the case of one term each), whichever rank holds them. Choice:
    AdamW (see `Optimiser`), started afresh by every call.

    Args:
        options: ``epochs`` passes in an order that ``seed`` decides; with ``max_steps``, that many batches.
        loss: what is optimised.
        learning_rate: of this call; ``options.learning_rate`` and ``decay`` are the caller's business.
        head_chunk: rows of logits that exist at a time.
        resume: may pause this after any step and go on there.

    Raises:
        ModelError: when a loss or gradient is not finite; names the samples.
        Paused: when the stage was warned.
    """
    phase = begin(resume, "fit", examples, options, loss, learning_rate, seed, head_chunk)
    state = TrainingState(model, hooks.memory)
    with _optimised(model, options, learning_rate, seed):
        if (saved := phase.result or phase.point) is not None:
            state.load(saved)
        for epoch, drawn in itertools.islice(_batches(examples, options, seed), state.drawn, None):
            with phase.interrupted(state.drawn, state.whole):  # the hook may run phases of its own
                batch = drawn if hooks.keep is None else hooks.keep(drawn)
            state.drawn += 1
            if not batch:
                continue
            if loss.kind == "cross_entropy":
                batch = [_chosen_only(example) for example in batch]
            work = batch, loss, options.micro_tokens, head_chunk
            objective, losses, norm = model.ranks.call(_step, model, *work)
            state.logs.append(StepLog(len(state.logs), epoch, objective, norm, tuple(losses)))
            if hooks.after_step is not None:
                hooks.after_step(state.logs[-1])
            phase.safe_point(state.whole)
    phase.finish(state.result, lasting=False)
    return state.logs


def sequence_log_probs(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    micro_tokens: int,
    head_chunk: int,
    resume: Resume | None = None,
) -> list[tuple[float, ...]]:
    """Summed log-probability of every response, without gradients: reference, entry and exit passes.

    Passes are formed by length, then id, so the order of ``examples`` does not matter.

    Args:
        micro_tokens: see `TrainOptions`.
        head_chunk: rows of logits that exist at a time.
        resume: may pause this after any group and go on there.

    Returns:
        Per example, one log-probability (nats) per response.
    """
    places = [(e, index) for e in examples for index in range(len(e.responses))]
    places.sort(
        key=lambda place: (len(place[0].prompt) + len(place[0].responses[place[1]]), place[0].id, place[1])
    )
    phase = begin(resume, "sequence_log_probs", examples, micro_tokens, head_chunk)
    saved = phase.result or phase.point
    values: list[float] = [] if saved is None else saved.values
    state = partial(Saved, {}, values)
    rest = places[len(values) :]
    lengths = [[len(e.prompt) + len(e.responses[index])] for e, index in rest]
    model.network.eval()
    with torch.no_grad():
        groups = micro_batches(model, rest, lengths, micro_tokens)
        for shares in bundles(groups, model.ranks.size):
            pairs = [[(e.prompt, e.responses[index]) for e, index in group] for group in shares]
            for found in model.ranks.call(each, model, _log_probs, pairs, head_chunk):
                values.extend(found)
            phase.safe_point(state)
    phase.finish(state)
    found = {(id(e), index): value for (e, index), value in zip(places, values, strict=True)}
    return [tuple(found[id(e), index] for index in range(len(e.responses))) for e in examples]


def _log_probs(model: LanguageModel, pairs: Sequence[Pair], head_chunk: int) -> list[float]:
    found: list[float] = forward_log_probs(model, pairs, head_chunk=head_chunk).tolist()
    return found


def with_reference(examples: Sequence[Example], log_probs: Sequence[tuple[float, ...]]) -> list[Example]:
    """The examples with their reference log-probabilities, as `sequence_log_probs` returned them."""
    return [replace(e, reference=values) for e, values in zip(examples, log_probs, strict=True)]


def _batches(
    examples: Sequence[Example], options: TrainOptions, seed: int
) -> Iterator[tuple[int, list[Example]]]:
    """(epoch, batch), each epoch in an order of its own."""
    if not examples:
        return
    made = epoch = 0
    while options.max_steps is not None or epoch < options.epochs:
        order = list(examples)
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        for first in range(0, len(order), options.batch_size):
            if made == options.max_steps:
                return
            made += 1
            yield epoch, order[first : first + options.batch_size]
        epoch += 1


def _step(
    model: LanguageModel, batch: Sequence[Example], loss: Loss, micro_tokens: int, head_chunk: int
) -> tuple[float, list[TermLoss], float]:
    """A command: one optimiser step, to which each rank brings the gradients of its share of the batch.

    Returns:
        Objective, losses in the order of ``batch``, gradient norm before clipping; on rank 0.
    """
    model.optimiser.begin()
    # Without dropout nothing differs in training mode, but only there activations are computed again. Every
    # time: hooks may have run passes of their own.
    model.network.train(model.checkpointing or (model.lora is not None and model.lora.dropout > 0))
    objective, losses = _accumulate(model, batch, loss, micro_tokens, head_chunk)

    def check(norm: float) -> None:
        if model.ranks.leads:
            _check_finite(objective + norm, losses, batch)

    return objective, losses, model.optimiser.step(check)


def _accumulate(
    model: LanguageModel, batch: Sequence[Example], loss: Loss, micro_tokens: int, head_chunk: int
) -> tuple[float, list[TermLoss]]:
    """Gradients of one step, micro-batch by micro-batch; objective, and losses in the order of ``batch``.

    The n-th of R ranks takes every R-th sample by size. Ranks with fewer micro-batches than others make up
    for it with some of weight 0, since under ZeRO all must meet in every backward pass.
    """
    ranks = model.ranks
    lengths = [[len(e.prompt) + len(response) for response in e.responses] for e in batch]
    # By what a pass holds of a sample: where ranks share the weights, its rows as long as the longest.
    size = _padded if ranks.shards else sum
    order = sorted(range(len(batch)), key=lambda place: size(lengths[place]))[ranks.index :: ranks.size]
    if ranks.shards:
        order.sort(key=lambda place: max(lengths[place], default=0))
    groups = micro_batches(model, order, [lengths[place] for place in order], micro_tokens)
    count = ranks.largest(len(groups))
    objective = 0.0
    losses: dict[int, list[TermLoss]] = {}
    for number in range(count):
        if number >= len(groups):
            nothing = forward_log_probs(model, [((model.pad_id,), (model.eos_id,))], head_chunk=head_chunk)
            model.optimiser.backward(0 * nothing.sum(), last=number == count - 1)
            continue
        members = [batch[place] for place in groups[number]]
        if isinstance(loss, SoftLoss):
            part, terms = _soft_micro_batch(model, members, loss, head_chunk)
        else:
            part, terms = _micro_batch(model, members, loss, head_chunk)
        part = part / len(batch)
        model.optimiser.backward(part, last=number == count - 1)
        objective += float(part.detach())
        losses.update(zip(groups[number], terms, strict=True))
    gathered = ranks.gather((objective, losses))
    whole = {place: terms for _, share in gathered for place, terms in share.items()}
    return sum(part for part, _ in gathered), [term for place in sorted(whole) for term in whole[place]]


def _padded(lengths: Sequence[int]) -> int:
    return len(lengths) * max(lengths, default=0)


def _micro_batch(
    model: LanguageModel, members: Sequence[Example], loss: PairLoss, head_chunk: int
) -> tuple[Tensor, list[list[TermLoss]]]:
    """Weighted sum of objectives over whole examples, and each example's losses."""
    pairs: list[Pair] = []
    terms: list[_Placed] = []
    for place, example in enumerate(members):
        terms += [(place, term, len(pairs)) for term in example.terms]
        pairs += [(example.prompt, response) for response in example.responses]
    policy = forward_log_probs(model, pairs, head_chunk=head_chunk)
    objective, plain = loss(
        policy,
        _reference(members, loss, policy),
        torch.tensor([len(response) for _, response in pairs], device=policy.device),
        torch.tensor([offset + term.chosen for _, term, offset in terms], device=policy.device),
        _rejected(terms, loss, policy),
    )
    total = (policy.new_tensor([term.weight for _, term, _ in terms]) * objective).sum()
    values, losses = policy.tolist(), plain.tolist()
    logged: list[list[TermLoss]] = [[] for _ in members]
    for (place, term, offset), value in zip(terms, losses, strict=True):
        rejected = None if term.rejected is None else values[offset + term.rejected]
        entry = TermLoss(members[place].id, term.partner, value, values[offset + term.chosen], rejected)
        logged[place].append(entry)
    return total, logged


def _soft_micro_batch(
    model: LanguageModel, members: Sequence[Example], loss: SoftLoss, head_chunk: int
) -> tuple[Tensor, list[list[TermLoss]]]:
    """As `_micro_batch`; the logged terms are called ``text`` and, where there is any, ``knowledge``."""
    pairs = [(example.prompt, example.responses[0]) for example in members]
    soft = [example.soft for example in members if example.soft is not None]
    assert len(soft) == len(members), "sparse distillation needs targets, were they empty"
    ids, probs = padded(soft)
    hard, others, segment = forward_gathered(model, pairs, ids, head_chunk=head_chunk)
    order = dict.fromkeys(segment.tolist())
    wanted = torch.cat([probs[i] for i in order]).to(others)
    text, knowledge = loss(hard, others, wanted, segment, len(members))
    weights = text.new_tensor([one.weight for one in soft])
    total = (loss.hard_weight * text + (1 - loss.hard_weight) * weights * knowledge).sum()
    logged = []
    for example, one, ce, kd in zip(members, soft, text.tolist(), knowledge.tolist(), strict=True):
        log_prob = -ce * len(example.responses[0])
        logged.append([TermLoss(example.id, "text", ce, log_prob, None)])
        if one.weight:
            logged[-1].append(TermLoss(example.id, "knowledge", kd, log_prob, None))
    return total, logged


def _reference(members: Sequence[Example], loss: PairLoss, policy: Tensor) -> Tensor | None:
    if loss.kind == "cross_entropy":
        return None
    values: list[float] = []
    for example in members:
        assert example.reference is not None, f"sample {example.id} has no reference log-probabilities"
        values += example.reference
    return policy.new_tensor(values)


def _rejected(terms: Sequence[_Placed], loss: PairLoss, policy: Tensor) -> Tensor | None:
    if loss.kind == "cross_entropy":
        return None
    places = []
    for _, term, offset in terms:
        assert term.rejected is not None, "a preference needs a rejected response"
        places.append(offset + term.rejected)
    return torch.tensor(places, device=policy.device)


def _chosen_only(example: Example) -> Example:
    """The example without the responses and references that cross-entropy does not read."""
    kept = sorted({term.chosen for term in example.terms})
    terms = tuple(replace(term, chosen=kept.index(term.chosen), rejected=None) for term in example.terms)
    return replace(example, responses=tuple(example.responses[i] for i in kept), terms=terms, reference=None)


@contextlib.contextmanager
def _optimised(
    model: LanguageModel, options: TrainOptions, learning_rate: float, seed: int
) -> Iterator[None]:
    """An optimiser, and a random state of its own for dropout; the model leaves in evaluation mode."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        model.ranks.call(open_optimiser, model, options, learning_rate, seed)
        try:
            yield
            model.ranks.call(close_optimiser, model)
        finally:
            model.network.eval()


def _check_finite(step_value: float, losses: Sequence[TermLoss], batch: Sequence[Example]) -> None:
    if math.isfinite(step_value):
        return
    guilty = sorted({entry.id for entry in losses if not math.isfinite(entry.loss)})
    named = ", ".join(guilty or [example.id for example in batch])
    raise ModelError(f"training gave a loss or gradient that is not a finite number, at samples {named}")
