"""Pre-training of one lab model from scratch: look-ups first, then the mixture.

Recipe of the lab study, section 2 (each part was needed or clearly helped): wide initial weights and a small
rope base, Muon for the hidden matrices and AdamW for the rest, letters weigh three times in the loss, loss on
responses only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada.data.lab_words import stream
from lada.lab.curriculum import Curriculum
from lada.lab.tokenizing import EOS_ID, PAD_ID
from lada.records import LETTERS

LETTER_WEIGHT = 3.0
SCORE_RATE = 0.3
IGNORED = -100


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns.

    Attributes:
        steps: optimiser steps of the second phase.
        batch: samples per step.
        muon_rate, adam_rate: peak learning rates.
        lookup_loss: the first phase ends when the running letter loss (nats) is below this,
        lookup_steps: or after this many steps.
    """

    steps: int
    batch: int = 32
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    lookup_loss: float = 0.25
    lookup_steps: int = 1800


Encoded = tuple[list[int], list[int]]


class Trainer:
    """Trains a network in place.

    Args:
        network: a causal LM of transformers with tied embeddings.
        tokenizer: its tokenizer.
        curriculum: where the samples come from.
        schedule: see there.
        report: called every 100 steps with figures.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        curriculum: Curriculum,
        schedule: Schedule,
        report: Callable[[dict[str, float]], None],
    ) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.curriculum, self.schedule, self.report = curriculum, schedule, report
        self.optimizers = _optimizers(network, schedule)
        self.is_letter = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
        for letter in LETTERS:
            self.is_letter[tokenizer.encode(f" {letter}").ids[-1]] = True
        self.softcap = getattr(network.config, "final_logit_softcapping", None)
        self.letter_loss, self.loss = math.log(4), 0.0
        self.started = time.perf_counter()

    def run(self) -> dict[str, float]:
        """Both phases; returns steps, wall seconds and the last losses."""
        schedule = self.schedule
        self.network.train()
        # At these lengths eager attention in bfloat16 took half the time of the fused float32 kernel.
        self.network.set_attn_implementation("eager")
        first = 0
        lookups = self._batches(self.curriculum.first_phase)
        while first < schedule.lookup_steps and (first < 100 or self.letter_loss > schedule.lookup_loss):
            self._step(next(lookups), min(1.0, (first + 1) / 50))
            first += 1
            self._log(first, "lookup")
        for second, batch in enumerate(self._batches(self.curriculum.second_phase), start=1):
            self._step(batch, min(_decay(second / schedule.steps), (first + second) / 50))
            self._log(second, "mixture")
            if second >= schedule.steps:
                break
        self.network.eval()
        seconds = time.perf_counter() - self.started
        return {
            "lookup_steps": first,
            "mixture_steps": schedule.steps,
            "wall_seconds": round(seconds, 1),
            "loss": round(self.loss, 4),
            "letter_loss": round(self.letter_loss, 4),
        }

    def _batches(self, draw: Callable[[int], list[tuple[str, str]]]) -> Iterator[list[Encoded]]:
        """Batches of similar length, in random order."""
        size, rng = self.schedule.batch, stream("batches", self.curriculum.seed)
        while True:
            pairs = draw(32 * size)
            prompts = self.tokenizer.encode_batch([text for text, _ in pairs])
            responses = self.tokenizer.encode_batch([f" {text}" for _, text in pairs])
            rows = [(p.ids, [*r.ids, EOS_ID]) for p, r in zip(prompts, responses, strict=True)]
            rows.sort(key=lambda row: len(row[0]) + len(row[1]) + 8 * rng.random())
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            rng.shuffle(batches)
            yield from batches

    def _step(self, batch: list[Encoded], rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        ids, labels = collate(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, letters = self._losses(ids, labels)
        weights = torch.where(letters, LETTER_WEIGHT, 1.0)
        loss = (losses * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.letter_loss = 0.96 * self.letter_loss + 0.04 * float(losses[letters].mean().detach())
        self.loss = 0.98 * self.loss + 0.02 * float(loss.detach())

    def _losses(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy [N] (nats) of the N labelled tokens, and which of them are letters [N]."""
        hidden = self.network.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][wanted]
        logits = self.network.lm_head(hidden[wanted])
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        return losses, self.is_letter[targets]

    def _log(self, step: int, phase: str) -> None:
        if step % 100 == 0:
            seconds = time.perf_counter() - self.started
            self.report(
                {
                    "mixture": float(phase == "mixture"),
                    "step": step,
                    "loss": round(self.loss, 4),
                    "letter_loss": round(self.letter_loss, 4),
                    "seconds": round(seconds, 1),
                }
            )


def collate(batch: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids [B, S], padded on the right, and labels [B, S] that are `IGNORED` outside the responses."""
    length = max(len(prompt) + len(response) for prompt, response in batch)
    ids = torch.full((len(batch), length), PAD_ID)
    labels = torch.full((len(batch), length), IGNORED)
    for row, (prompt, response) in enumerate(batch):
        start, end = len(prompt), len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        labels[row, start:end] = ids[row, start:end]
    return ids, labels


def _decay(progress: float) -> float:
    """Constant for the first half, then linear down to 4 %."""
    return 1.0 if progress < 0.5 else 1.0 - 0.96 * (progress - 0.5) / 0.5


def _optimizers(network: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    scores: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    # Choice: query and key matrices learn at 0.3 of the rate where nothing normalises or caps the attention
    # scores (Llama, Qwen2): the letter loss of look-ups fell below 0.32 after 700 steps instead of 1800.
    normal = getattr(network.config, "attn_logit_softcapping", None) or any(
        name.endswith("q_norm.weight") for name, _ in network.named_parameters()
    )
    for name, parameter in network.named_parameters():
        if parameter.ndim != 2 or "embed" in name or "lm_head" in name:
            rest.append(parameter)
        elif name.endswith(("q_proj.weight", "k_proj.weight")) and not normal:
            scores.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "lr": schedule.muon_rate}]
    if scores:
        groups.append({"params": scores, "lr": SCORE_RATE * schedule.muon_rate})
    adam = torch.optim.AdamW(rest, lr=schedule.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon(groups, weight_decay=0.01, ns_steps=4, adjust_lr_fn="original")
    for optimizer in (adam, muon):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [adam, muon]
