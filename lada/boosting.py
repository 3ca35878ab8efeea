"""Self-boosted sample weights during training: what the small model answers otherwise is trusted less (WASP).

Baselines, section 5 a: after each epoch, the weight of a sample that the model misses shrinks by
base^-(1 - p), p the probability that the model gives the stated letter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lada.answers import extract_letter
from lada.distillation import training_metrics
from lada.generation import generate
from lada.language_model import LanguageModel
from lada.local import supervised, train
from lada.losses import PairLoss
from lada.party import Party
from lada.prompts import join, solution
from lada.records import LETTERS, Item
from lada.resume import Saved
from lada.training import Example, Hooks, Term, sequence_log_probs
from lada.voting import boost_base, boosted

Missed = Mapping[str, float]
"""Samples that the model answers otherwise, or not at all -> probability of the stated letter."""
MARKER = "The answer is"


def missed_samples(party: Party, model: LanguageModel, items: Sequence[Item]) -> Missed:
    """What the model as it is gets wrong by its own reasoning, decoded greedily.

    Choice: the probability of a letter is taken after the model's own reasoning, at the marker, among the
    four letters. In a bare-letter prompt a model that reasons knows nothing, and behind the stated
    reasoning it would only read the letter off.
    """
    prompts = [party.prompt(item) for item in items]
    tick = party.reporter.phase("judging samples", len(items))
    texts = generate(
        model,
        prompts,
        party.config.generation.model_copy(update={"temperature": 0.0}),
        progress=lambda done, total: tick(done, ""),
        resume=party.resume,
    )
    examples, wanted = [], {}
    for item, prompt, one in zip(items, prompts, texts, strict=True):
        if extract_letter(one.text, item.options) == item.answer:
            continue
        before, found, _ = one.text.rpartition(MARKER)
        reasoning = f"{(before if found else one.text).rstrip()}\n{MARKER}"
        shown = join(reasoning, party.config.template)
        given = model.prompt_ids(prompt) + model.response_ids(shown, finished=False)
        letters = tuple(tuple(model.response_ids(f" {letter}", finished=False)) for letter in LETTERS)
        examples.append(Example(item.id, tuple(given), letters, (Term("", 0, None),)))
        wanted[item.id] = LETTERS.index(item.answer)
    role, chunk = party.training("client"), party.config.numerics.head_chunk
    values = sequence_log_probs(
        model, examples, micro_tokens=role.micro_tokens, head_chunk=chunk, resume=party.resume
    )
    return {
        example.id: share_of(four, wanted[example.id]) for example, four in zip(examples, values, strict=True)
    }


def share_of(log_probs: Sequence[float], place: int) -> float:
    """Probability of one of several answers, given that it is one of them."""
    top = max(log_probs)
    return math.exp(log_probs[place] - top) / sum(math.exp(value - top) for value in log_probs)


@dataclass
class Boosting:
    """Weights of samples that change after each epoch; `keep` puts them on a batch as it is drawn.

    Attributes:
        weights: sample -> weight; their mean is 1 and stays so.
        epochs, per_epoch: of the training, in epochs and in batches.
        judge: what the model misses at present; None: the weights stay as they are.
        missed: share of samples that were missed, at the end of each epoch.
    """

    weights: dict[str, float]
    epochs: int
    per_epoch: int
    judge: Callable[[], Missed] | None
    missed: list[float] = field(default_factory=list)
    _batches: int = 0

    def keep(self, batch: list[Example]) -> list[Example]:
        """The batch with its weights, after an update where an epoch has just ended."""
        if self._batches and self._batches % self.per_epoch == 0:
            self.update()
        self._batches += 1
        return [
            replace(e, terms=tuple(replace(t, weight=self.weights[e.id]) for t in e.terms)) for e in batch
        ]

    def update(self) -> None:
        """End an epoch."""
        if self.judge is None or not self.weights:
            return
        missed = self.judge()
        names = list(self.weights)
        new = boosted(
            list(self.weights.values()),
            [missed.get(name, 1.0) for name in names],
            [name in missed for name in names],
            base=boost_base(len(names), self.epochs),
        )
        self.weights = dict(zip(names, new, strict=True))
        self.missed.append(len(missed) / len(names))

    def end(self) -> dict[str, float]:
        """End the last epoch; metrics, none where the weights stay as they are."""
        self.update()
        if not self.missed:
            return {}
        values = self.weights.values()
        return {
            "missed": self.missed[-1],
            "weight_least": min(values),
            "weight_greatest": max(values),
        }

    def state(self) -> Saved:
        """All that changes."""
        return Saved({}, {"weights": self.weights, "missed": self.missed, "batches": self._batches})

    def load_state(self, saved: Saved) -> None:
        """Put a `state` back."""
        values: dict[str, Any] = saved.values
        self.weights, self.missed, self._batches = values["weights"], values["missed"], values["batches"]


def solved_example(party: Party, model: LanguageModel, item: Item) -> Example:
    """A question with its own solution as what is to be learnt."""
    return supervised(model, item.id, party.prompt(item), join(solution(item), party.config.template))


def learn_boosted(
    party: Party, model: LanguageModel, items: Sequence[Item], *, boosting: bool
) -> dict[str, float]:
    """Train ``model`` in place on solved questions: minimise sum w ce / sum w, w boosted after each epoch.

    Choice: every round begins with equal weights, as every training of the original does; weights that
    lived on fell to a thousandth within three rounds of the lab. So with one epoch they change nothing.

    Args:
        boosting: False leaves all weights as they are.

    Returns:
        Metrics of the training: ``missed``, the share of samples that the model answers otherwise at the
        end, and the least and the greatest weight then.
    """
    role, weights = party.training("client"), even_weights(party, model, items, boosting=boosting)
    examples = [solved_example(party, model, item) for item in items]
    logs = train(
        party,
        model,
        examples,
        role,
        PairLoss(kind="cross_entropy"),
        name="distillation",
        learning_rate=role.learning_rate * role.decay ** (party.round - 1),
        hooks=Hooks(weights.keep, memory=weights),
    )
    return training_metrics(examples, logs) | weights.end()


def even_weights(party: Party, model: LanguageModel, items: Sequence[Item], *, boosting: bool) -> Boosting:
    """Weights of a client's samples at the beginning of a training on them."""
    role = party.training("client")
    per_epoch = max(1, math.ceil(len(items) / role.batch_size))
    return Boosting(
        dict.fromkeys((item.id for item in items), 1.0),
        epochs=math.ceil(role.max_steps / per_epoch) if role.max_steps else role.epochs,
        per_epoch=per_epoch,
        judge=(lambda: missed_samples(party, model, items)) if boosting else None,
    )
