"""Texts at which all parties look with their models: knowledge taken, received and turned into targets.

What is replaceable stands outside: who learns from whom is a matrix of weights (`lada.selection.min_ce`), and
what is optimised is the loss that `lada.local.train` is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from lada.config import Options, Positive
from lada.distillation import training_metrics
from lada.knowledge import Knowledge, letter_knowledge, received, top_knowledge
from lada.language_model import LanguageModel
from lada.party import Party
from lada.payloads import Origin
from lada.prompts import TEMPLATES, join, prompt
from lada.records import LETTERS
from lada.soft_targets import Rows, SoftTargets, mix, one_hot, softmax, transfer
from lada.token_alignment import NOTHING, Align, Aligner, Stored
from lada.training import Example, Term
from lada.training_state import StepLog
from lada.vocabulary import Vocabulary


class TransferOptions(Options):
    """What is shared, and how it is read by another tokenizer; described where a method takes them."""

    mode: Literal["letter", "seq"] = "letter"
    top_k: Positive = 32
    align: Align = "offset"
    temperature: Annotated[float, Field(gt=0)] = 1.0


class SharedTexts:
    """Shared texts as one party's model reads them.

    Args:
        texts: public id -> the label's letter (``letter``) or the whole response (``seq``), in the order in
            which all parties hold them.
        stored: the party's earlier alignments (`Aligner.state`).

    Attributes:
        ids: of the texts.
        aligner: with all that this party aligned so far.
    """

    def __init__(
        self,
        party: Party,
        model: LanguageModel,
        texts: Mapping[str, str],
        options: TransferOptions,
        stored: Stored | None = None,
    ) -> None:
        self._party, self._model, self._options = party, model, options
        self.ids, self._texts = list(texts), list(texts.values())
        self._vocabularies: dict[str, Vocabulary] = {}
        self.aligner = Aligner(self._vocabulary(party.name), options.align, stored)

    @cached_property
    def examples(self) -> list[Example]:
        """One example per text: its one response is what cross-entropy is taken on.

        Choice: in ``letter`` mode that is the letter alone, without end-of-sequence: the same row that the
        knowledge is about.
        """
        return [self._example(name, text) for name, text in zip(self.ids, self._texts, strict=True)]

    def _example(self, name: str, text: str) -> Example:
        question, form = self._party.public[name], self._party.config.template
        if self._options.mode == "seq":
            before = self._model.prompt_ids(self._party.prompt(question))
            response = self._model.response_ids(join(text, form))
        else:
            head, letters = self._letters
            asked = prompt(question, template=form, demo=self._party.demo, cue="letter")
            before = [*self._model.prompt_ids(asked), *head]
            response = [letters[LETTERS.index(text)]]
        terms = (Term("text", 0, None), Term("knowledge", 0, None))
        return Example(name, tuple(before), (tuple(response),), terms)

    @cached_property
    def _letters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens between prompt and letter, and the letters' tokens."""
        between = TEMPLATES[self._party.config.template].join
        return self._vocabulary(self._party.name).option_tokens(between, LETTERS)

    def known(self) -> Knowledge:
        """What the model knows of the texts as it stands."""
        party, own = self._party, self._vocabulary(self._party.name)
        tick = party.reporter.phase("knowledge", 1)
        micro_tokens, chunk = party.training(party.role).micro_tokens, party.config.numerics.head_chunk
        if self._options.mode == "letter":
            found = letter_knowledge(
                self._model,
                self.examples,
                self._letters[1],
                micro_tokens=micro_tokens,
                head_chunk=chunk,
                resume=party.resume,
            )
        else:
            found = top_knowledge(
                self._model,
                self.examples,
                [len(text) for text in self._texts],
                num_top=self._options.top_k,
                num_tokens=own.size,
                micro_tokens=micro_tokens,
                head_chunk=chunk,
                resume=party.resume,
            )
        tick(1, f"{float(found.ce.mean()) if self.ids else 0.0:.3f} nats per character")
        return found

    def received(self, sender: str, arrays: Mapping[str, NDArray[np.generic]], origin: Origin) -> Knowledge:
        """What another party sent of these texts, checked against them.

        Raises:
            ExchangeError: when it cannot be about these texts; see `lada.knowledge.received`.
        """
        if self._options.mode == "letter":
            return received(arrays, [1] * len(self.ids), num_tokens=None, origin=origin)
        other = self._vocabulary(sender)
        lengths = [len(other.cut(self._joined(i)).ids) + 1 for i in range(len(self.ids))]
        return received(arrays, lengths, num_tokens=other.size, origin=origin)

    def targets(self, sources: Mapping[str, Knowledge], weights: NDArray[np.float64]) -> list[Example]:
        """The examples with their sparse targets: the weighted mean of the sources that each text is given.

        A text's distillation term counts N / (number of texts with any source), so that the mean over all
        texts is the mean over the selected ones (baselines, section 4 D).

        Args:
            sources: party -> its knowledge.
            weights: of the sources [N, len(sources)]; a row of zeros leaves the distillation term out.
        """
        selected = int((weights.sum(axis=1) > 0).sum())
        found = []
        for i, example in enumerate(self.examples):
            used = [(name, weight) for name, weight in zip(sources, weights[i], strict=True) if weight > 0]
            rows = [self._rows(name, sources[name], i) for name, _ in used]
            length = len(example.responses[0])
            empty = (np.zeros((length, 1), dtype=np.int64), np.zeros((length, 1), dtype=np.float32))
            ids, probs = mix(rows, [weight for _, weight in used]) if used else empty
            share = len(self.ids) / selected if used else 0.0
            soft = SoftTargets(torch.from_numpy(ids), torch.from_numpy(probs), share)
            found.append(replace(example, soft=soft))
        return found

    def _rows(self, name: str, knowledge: Knowledge, text: int) -> Rows:
        ids, logits = knowledge.rows(text)
        if ids is None:
            letters = np.array([self._letters[1]] * len(logits), dtype=np.int64)
            return letters, softmax(logits.astype(np.float64) / self._options.temperature)
        other = self._vocabulary(name)
        mapping, rows = self.aligner.mapping(other), self.aligner.rows(other, self._joined(text))
        found = transfer(ids, logits, rows, mapping, temperature=self._options.temperature)
        if self._options.align == "offset":
            return found
        return one_hot(found, [row == NOTHING for row in rows], self.examples[text].responses[0])

    def _joined(self, text: int) -> str:
        return join(self._texts[text], self._party.config.template)

    def _vocabulary(self, name: str) -> Vocabulary:
        if name not in self._vocabularies:
            self._vocabularies[name] = self._party.vocabulary(name)
        return self._vocabularies[name]


def source_metrics(sources: Mapping[str, Knowledge], weights: NDArray[np.float64]) -> dict[str, float]:
    """Who taught how many texts (the source of the largest weight), and how surprising each finds them."""
    best = np.where(weights.any(axis=1), weights.argmax(axis=1), NOTHING)
    found = {f"selected/{name}": float((best == place).sum()) for place, name in enumerate(sources)}
    surprise = {
        f"cross_entropy/{name}": float(one.ce.mean(dtype=np.float64)) for name, one in sources.items()
    }
    return found | surprise


def transfer_metrics(examples: Sequence[Example], logs: Sequence[StepLog]) -> dict[str, float]:
    """Of a training with `SoftLoss`: its terms in the last epoch; share of selected rows with knowledge."""
    found = training_metrics(examples, logs)
    last = [entry for log in logs if log.epoch == logs[-1].epoch for entry in log.losses]
    for term in ("text", "knowledge"):
        values = [entry.loss for entry in last if entry.partner == term]
        if values:
            found[f"train_loss/{term}"] = sum(values) / len(values)
    probs = [example.soft.probs for example in examples if example.soft is not None and example.soft.weight]
    rows = sum(len(one) for one in probs)
    found["rows_with_knowledge"] = sum(int((one.sum(1) > 0).sum()) for one in probs) / max(1, rows)
    return found
