"""A run's sizes and text lengths, and the pieces that its stages' work is made of (`method_works`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.assumptions import Planning
from jobs.workload import Generation, Pass, Training, Work
from lada.config import SERVER, RunConfig, TrainOptions
from lada.rundir import Stage


@dataclass
class StageWork:
    """What a stage computes and sends.

    Attributes:
        works: (name, work), in order.
        texts: reasoning texts sent, a text once per recipient.
        ids: sample ids, likewise.
        other: bytes of letters, votes and logits, likewise.
        rewards: bytes, likewise.
        models: adapters (or hashes of weights), likewise.
        unknown: nothing is known of this step.
    """

    works: list[tuple[str, Work]] = field(default_factory=list)
    texts: float = 0.0
    ids: float = 0.0
    other: float = 0.0
    rewards: float = 0.0
    models: int = 0
    unknown: bool = False


class Run:
    """A run's sizes and lengths, by which steps count their work."""

    def __init__(self, config: RunConfig, planning: Planning) -> None:
        self.config, self.texts = config, planning.texts.of(config.dataset.name)
        self.method: Mapping[str, Any] = config.method
        self.clients = len(config.clients)
        self.public, self.test = config.data.num_public, config.data.num_test
        self.prompt = self.texts.question + (self.texts.demonstration if config.shots else 0)
        self.response = self.texts.response
        guest = self.method.get("lada") if self.method.get("plugin") == "lada" else self.method
        self.guest: Mapping[str, Any] = guest or {}
        self.share = self._share(planning)

    def _share(self, planning: Planning) -> float:
        """Share of the public questions that a pair trains on in a round."""
        select = self.guest.get("select", {})
        if self.guest.get("use_filter") is False or select.get("mode") == "all":
            return 1.0
        if select.get("mode") in ("random", "oracle") or select.get("rule", "threshold") != "threshold":
            return float(select["share"])
        return planning.selected

    # -- kinds of work

    def generate(self, count: float, *, prompt: float | None = None, scale: float = 1.0) -> Work:
        """Answers to ``count`` prompts, ``scale`` times as long as a reasoning text."""
        return Generation(count, self.prompt if prompt is None else prompt, scale * self.response)

    def evaluate(self, party: str) -> tuple[str, Work]:
        """A party's test questions, all clients' for the server."""
        return "test", self.generate(self.test * (self.clients if party == SERVER else 1))

    def train(
        self, options: TrainOptions, examples: float, sequences: float, response: float
    ) -> tuple[str, Work]:
        """Optimiser steps over ``examples`` that are ``sequences`` texts in all."""
        per_epoch = max(1, math.ceil(examples / options.batch_size))
        steps = options.max_steps or options.epochs * per_epoch
        return "training", Training(sequences, self.prompt, response, steps / per_epoch, steps)

    def role(self, party: str) -> TrainOptions:
        """Optimiser options of a party's distillation rounds."""
        options = self.config.training.server if party == SERVER else self.config.training.client
        own = self.config.party(party).epochs
        return options if own is None else options.model_copy(update={"epochs": own})

    def local_training(self) -> list[tuple[str, Work]]:
        """Local fine-tuning, own rationales included."""
        local, items = self.config.local, self.config.data.num_train
        if local.target == "answer_only":
            return [self.train(self.config.training.local, items, items, self.texts.answer)]
        drawn = [("rationales", self.generate(items * local.num_samples))]
        return [*drawn, self.train(self.config.training.local, items, items, self.response)]

    def prompts(self) -> tuple[str, Work]:
        """Features of all public questions."""
        return "features", Pass(self.public, self.prompt, 0)

    def read(self, name: str, sequences: float, response: float | None = None) -> tuple[str, Work]:
        """A pass over texts without gradients."""
        return name, Pass(sequences, self.prompt, self.response if response is None else response)

    # -- LaDa's selections

    @property
    def pairs(self) -> float:
        """Samples that one filter selects."""
        return self.share * self.public

    def union(self, filters: int) -> float:
        """Distinct samples of several filters, as if each drew by itself."""
        return self.public * (1 - (1 - self.share) ** filters)


def partners_of(run: Run, stage: Stage) -> int:
    """The server for a client, all clients for the server."""
    return run.clients if stage.party == SERVER else 1
