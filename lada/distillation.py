"""One round of distillation of one party: reference, entry pass, training, rewards, filter updates.

The order is Algorithm 1's (method page, section 1.2 e): the entry losses close the previous round's reward,
training follows, and its losses reward this round's selection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lada.answers import extract_letter
from lada.language_model import LanguageModel
from lada.local import train
from lada.losses import PairLoss
from lada.pairs import TextPair
from lada.party import Party
from lada.records import Reward, SampleLog
from lada.resume import Saved
from lada.selection.allocation import Allocation, Rewarded, RoundLosses, paired_gains
from lada.selection.features import SampleHistory
from lada.selection.rewards import batch_gains
from lada.training import NO_HOOKS, Example, Hooks, sequence_log_probs, with_reference
from lada.training_state import StepLog

LogProbs = Sequence[tuple[float, ...]]
ByPartner = dict[str, dict[str, float]]
CALLER = "caller"


@dataclass
class Learned:
    """What a round of distillation left.

    Attributes:
        losses, rewarded: by partner. metrics: of the training, for metrics.csv.
    """

    losses: dict[str, RoundLosses]
    rewarded: dict[str, Rewarded]
    metrics: dict[str, float] = field(default_factory=dict)


def distil(
    party: Party,
    model: LanguageModel,
    examples: Sequence[Example],
    allocations: Mapping[str, Allocation],
    loss: PairLoss,
    *,
    entry_pass: bool,
    hooks: Hooks = NO_HOOKS,
) -> Learned:
    """Train on the examples and reward their selection.

    Args:
        examples: without reference log-probabilities; they are taken here, once for all epochs.
        allocations: partner -> the pair's allocation, whose filter learns.
        entry_pass: measure losses before the first step by a pass of their own, else take first visits.
        hooks: of the caller; ``keep`` sees a batch before the filters do.
    """
    known = _referenced(party, model, examples, loss)
    entry = _losses(party, model, known, loss, "entry pass") if entry_pass else {}
    late = _close_previous_round(allocations, entry) if entry_pass else {}
    watch = _Watch(party, model, {example.id: example for example in known}, allocations, loss, hooks)
    logs = watch.train(known)
    found = {partner: watch.round_losses(partner, entry) for partner in allocations}
    if not entry_pass:
        late = _close_previous_round(allocations, {partner: one.entry for partner, one in found.items()})
    _exit(party, model, known, loss, found)
    rewarded = {
        partner: allocation.end_round(found[partner], round=party.round)
        for partner, allocation in allocations.items()
    }
    _remember(known, allocations, logs, loss)
    asked = {
        f"selected/{partner}": float(len(one.selection.ids))
        for partner, one in allocations.items()
        if one.selection is not None
    }
    return Learned(found, rewarded, {**training_metrics(known, logs), **late, **asked})


def _close_previous_round(allocations: Mapping[str, Allocation], entry: ByPartner) -> dict[str, float]:
    """The round-level gains that this round's entry losses make known, as metrics."""
    gains = {partner: one.begin_round(entry.get(partner, {})) for partner, one in allocations.items()}
    return {f"late_round_gain/{partner}": gain for partner, gain in gains.items() if gain is not None}


class _Watch:
    """Follows training step by step for rewards, online filter updates and refinement."""

    def __init__(
        self,
        party: Party,
        model: LanguageModel,
        examples: Mapping[str, Example],
        allocations: Mapping[str, Allocation],
        loss: PairLoss,
        hooks: Hooks,
    ) -> None:
        self._party, self._model, self._loss, self._hooks = party, model, loss, hooks
        self._examples, self._allocations = examples, allocations
        self._steps: list[ByPartner] = []
        self._after: list[ByPartner] = []
        self._re_forward = any(
            one.options.reward.resolved().batch_pairing == "same_batch" for one in allocations.values()
        )

    def train(self, examples: Sequence[Example]) -> list[StepLog]:
        kind = "server" if self._party.role == "server" else "client"
        options = self._party.training(kind)
        rate = options.learning_rate * options.decay ** (self._party.round - 1)
        return train(
            self._party,
            self._model,
            examples,
            options,
            self._loss,
            name="distillation",
            learning_rate=rate,
            hooks=Hooks(self._keep, self._after_step, memory=self),
        )

    def state(self) -> Saved:
        """What the hooks have gathered and taught so far."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for partner, allocation in self._allocations.items():
            own, values[partner] = allocation.round_state()
            tensors |= {f"{partner}.{key}": value for key, value in own.items()}
        found = {"allocations": values, "steps": self._steps, "after": self._after}
        if self._hooks.memory is not None:
            caller = self._hooks.memory.state()
            tensors |= {f"{CALLER}.{key}": value for key, value in caller.tensors.items()}
            found[CALLER] = caller.values
        return Saved(tensors, found)

    def load_state(self, saved: Saved) -> None:
        """Put a `state` back."""
        self._steps, self._after = saved.values["steps"], saved.values["after"]
        for partner, allocation in self._allocations.items():
            allocation.load_round_state(_part(saved, partner), saved.values["allocations"][partner])
        if self._hooks.memory is not None:
            self._hooks.memory.load_state(Saved(_part(saved, CALLER), saved.values[CALLER]))

    def round_losses(self, partner: str, entry: ByPartner) -> RoundLosses:
        steps = [step.get(partner, {}) for step in self._steps]
        first: dict[str, float] = {}
        for step in steps:
            first = {**step, **first}
        after = [step.get(partner, {}) for step in self._after] if self._re_forward else None
        return RoundLosses(entry=entry.get(partner, first), steps=steps, after=after)

    def _keep(self, batch: list[Example]) -> list[Example]:
        """Drop the pairs that their filter no longer wants (``select.refine``)."""
        if self._hooks.keep is not None:
            batch = self._hooks.keep(batch)
        wanted: set[tuple[str, str]] = set()
        for partner, allocation in self._allocations.items():
            mine = [e.id for e in batch if any(term.partner == partner for term in e.terms)]
            wanted |= {(name, partner) for name in (allocation.keep(mine) if mine else ())}
        return [kept for example in batch if (kept := _without(example, wanted)) is not None]

    def _after_step(self, log: StepLog) -> None:
        step: ByPartner = {}
        for entry in log.losses:
            step.setdefault(entry.partner, {})[entry.id] = entry.loss
        self._steps.append(step)
        if self._re_forward:
            ids = list(dict.fromkeys(entry.id for entry in log.losses))
            batch = [self._examples[name] for name in ids]
            self._after.append(_losses(self._party, self._model, batch, self._loss, None))
        for partner, allocation in self._allocations.items():
            allocation.after_step(step.get(partner, {}), round=self._party.round)
        if self._hooks.after_step is not None:
            self._hooks.after_step(log)


def _part(saved: Saved, owner: str) -> dict[str, Tensor]:
    """Tensors of a partner or of the caller, under their own names."""
    start = f"{owner}."
    return {key.removeprefix(start): value for key, value in saved.tensors.items() if key.startswith(start)}


def _without(example: Example, wanted: set[tuple[str, str]]) -> Example | None:
    """The example with its wanted terms alone.

    Weights that summed to 1 do so again; where each pair counts in full (``server_weights: none``), the pairs
    that are left still do, and no more than that.
    """
    terms = [term for term in example.terms if (example.id, term.partner) in wanted]
    if len(terms) == len(example.terms):
        return example
    if not terms:
        return None
    total = sum(term.weight for term in example.terms)
    scale = total / sum(term.weight for term in terms) if math.isclose(total, 1.0) else 1.0
    return replace(example, terms=tuple(replace(term, weight=term.weight * scale) for term in terms))


def _referenced(
    party: Party, model: LanguageModel, examples: Sequence[Example], loss: PairLoss
) -> list[Example]:
    if loss.kind == "cross_entropy" or not examples:
        return list(examples)
    with model.reference():
        return with_reference(examples, _log_probs(party, model, examples, "reference pass"))


def _log_probs(party: Party, model: LanguageModel, examples: Sequence[Example], name: str | None) -> LogProbs:
    role = party.training("server" if party.role == "server" else "client")
    tick = party.reporter.phase(name, 1) if name else None
    chunk = party.config.numerics.head_chunk
    found = sequence_log_probs(
        model,
        examples,
        micro_tokens=role.micro_tokens,
        head_chunk=chunk,
        # A pass without a name is a part of training, which is resumed as a whole.
        resume=party.resume if name else None,
    )
    if tick:
        tick(1, "")
    return found


def _losses(
    party: Party, model: LanguageModel, examples: Sequence[Example], loss: PairLoss, name: str | None
) -> ByPartner:
    """Plain loss of every pair under the model as it is: partner -> id -> loss."""
    if not examples:
        return {}
    return pair_losses(examples, _log_probs(party, model, examples, name), loss)


def pair_losses(examples: Sequence[Example], log_probs: LogProbs, loss: PairLoss) -> ByPartner:
    """Losses of pairs from log-probabilities of their responses: partner -> id -> loss (nats)."""
    found: ByPartner = {}
    for example, values in zip(examples, log_probs, strict=True):
        policy = torch.tensor(values)
        reference = None if example.reference is None else torch.tensor(example.reference)
        chosen = torch.tensor([term.chosen for term in example.terms])
        rejected = None
        if loss.kind == "preference":
            rejected = torch.tensor([term.rejected for term in example.terms])
        lengths = torch.tensor([len(response) for response in example.responses])
        _, plain = loss(policy, reference, lengths, chosen, rejected)
        for term, value in zip(example.terms, plain.tolist(), strict=True):
            found.setdefault(term.partner, {})[example.id] = value
    return found


def _exit(
    party: Party,
    model: LanguageModel,
    examples: Sequence[Example],
    loss: PairLoss,
    found: Mapping[str, RoundLosses],
) -> None:
    """Losses and likelihoods after training: for rewards that need them, and for everyone's diagnostics."""
    if not examples:
        return
    log_probs = _log_probs(party, model, examples, "exit pass")
    losses = pair_losses(examples, log_probs, loss)
    for partner, record in found.items():
        record.exit = losses.get(partner, {})
        record.likelihood = {
            example.id: values[term.chosen] / len(example.responses[term.chosen])
            for example, values in zip(examples, log_probs, strict=True)
            for term in example.terms
            if term.partner == partner
        }


def _remember(
    examples: Sequence[Example],
    allocations: Mapping[str, Allocation],
    logs: Sequence[StepLog],
    loss: PairLoss,
) -> None:
    """Update each pair's history of samples (the optional features of the filter)."""
    by_id = {example.id: example for example in examples}
    for allocation in allocations.values():
        for name, past in allocation.history.items():
            allocation.history[name] = SampleHistory(**{**vars(past), "rounds_since": past.rounds_since + 1})
    for log in logs:
        for entry in log.losses:
            example = by_id[entry.id]
            term = next(term for term in example.terms if term.partner == entry.partner)
            margin = 0.0
            if example.reference is not None and term.rejected is not None:
                ratio = entry.chosen_log_prob - example.reference[term.chosen]
                against = (entry.rejected_log_prob or 0.0) - example.reference[term.rejected]
                margin = loss.beta * (ratio - against)
            rejected = 0 if term.rejected is None else len(example.responses[term.rejected])
            allocation = allocations[entry.partner]
            allocation.history[entry.id] = SampleHistory(
                loss=entry.loss,
                margin=margin,
                chosen_tokens=len(example.responses[term.chosen]),
                rejected_tokens=rejected,
                rounds_since=1,
                confidence=allocation.confidence.get(entry.id),
            )


def training_metrics(examples: Sequence[Example], logs: Sequence[StepLog]) -> dict[str, float]:
    """Of a training, for metrics.csv: steps, samples, losses, and log-ratios where there is a reference."""
    found = {"optimiser_steps": float(len(logs)), "trained_samples": float(len(examples))}
    if not logs:
        return found
    last = [log for log in logs if log.epoch == logs[-1].epoch]
    found["train_loss_first"] = logs[0].objective
    found["train_loss"] = sum(log.objective for log in last) / len(last)
    found["grad_norm"] = sum(log.grad_norm for log in last) / len(last)
    by_id = {example.id: example for example in examples}
    chosen, rejected = [], []
    for log in last:
        for entry in log.losses:
            example = by_id[entry.id]
            term = next(term for term in example.terms if term.partner == entry.partner)
            if example.reference is None or entry.rejected_log_prob is None or term.rejected is None:
                continue
            chosen.append(entry.chosen_log_prob - example.reference[term.chosen])
            rejected.append(entry.rejected_log_prob - example.reference[term.rejected])
    if chosen:
        found["chosen_log_ratio"] = sum(chosen) / len(chosen)
        found["rejected_log_ratio"] = sum(rejected) / len(rejected)
    return found


def sample_logs(
    party: Party, allocations: Mapping[str, Allocation], pairs: Sequence[TextPair], learned: Learned
) -> list[SampleLog]:
    """What the party knows of every pair of the round, for the host's diagnostics."""
    found = []
    paired = {
        partner: paired_gains(losses, allocations[partner].options.reward)
        for partner, losses in learned.losses.items()
    }
    paper = {
        partner: batch_gains(losses.steps, allocations[partner].options.reward.next_batch())
        for partner, losses in learned.losses.items()
    }
    for pair in pairs:
        allocation, rewarded = allocations[pair.partner], learned.rewarded[pair.partner]
        selection = allocation.selection
        assert selection is not None
        row = selection.row(pair.id)
        scored = selection.by == "filter"
        options = party.question(pair.id).options
        likelihood = learned.losses[pair.partner].likelihood or {}
        found.append(
            SampleLog(
                id=pair.id,
                partner=pair.partner,
                selected_by=selection.by,
                chosen=extract_letter(pair.chosen.text, options),
                rejected=extract_letter(pair.rejected.text, options),
                same_text=pair.same,
                exploit=float(selection.exploit[row]) if scored else None,
                explore=float(selection.explore[row]) if scored else None,
                score=float(selection.total[row]) if scored else None,
                round_gain=rewarded.round_gain,
                batch_gain=rewarded.gains.get(pair.id),
                paper_gain=paper[pair.partner].get(pair.id),
                paired_gain=paired[pair.partner].get(pair.id),
                likelihood=likelihood.get(pair.id),
                reward=rewarded.rewards.get(pair.id),
            )
        )
    return found


def reward_records(learned: Learned) -> list[Reward]:
    """The rewards of a round as they are published: by partner, then id."""
    return [
        Reward(
            id=name,
            partner=partner,
            round_gain=rewarded.round_gain,
            batch_gain=rewarded.gains.get(name),
            reward=rewarded.rewards[name],
        )
        for partner, rewarded in sorted(learned.rewarded.items())
        for name in sorted(rewarded.rewards)
    ]
