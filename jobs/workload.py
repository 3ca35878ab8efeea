"""Tokens, FLOPs and seconds of the three kinds of work that stages consist of.

FLOPs: 2 per weight and token forward, the attention's scores (their causal half), the head at response
positions alone; backward as much again for the inputs and, in full fine-tuning, for the weights; with
checkpointing one forward pass more. Seconds: the larger of arithmetic at the assumed efficiency and of what
has to be moved meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jobs.footprint import BF16, GB, Setup, generation_span

TERA = 1e12


@dataclass(frozen=True)
class Pass:
    """Sequences that are read in whole, without gradients.

    Attributes:
        count: sequences. prompt, response: mean tokens of each.
    """

    count: float
    prompt: float
    response: float

    @property
    def tokens(self) -> float:
        """Tokens read."""
        return self.count * (self.prompt + self.response)


@dataclass(frozen=True)
class Training(Pass):
    """Sequences of one epoch's optimiser steps.

    Attributes:
        epochs: passes over them.
        steps: optimiser steps, all epochs together.
    """

    epochs: float = 1
    steps: int = 1

    @property
    def tokens(self) -> float:
        """Tokens trained on, all epochs together."""
        return self.epochs * self.count * (self.prompt + self.response)


@dataclass(frozen=True)
class Generation(Pass):
    """Prompts that are answered; ``response`` is the mean of new tokens."""


Work = Pass | Training | Generation


@dataclass(frozen=True)
class Effort:
    """What a stage's work comes to.

    Attributes:
        seconds: name of the work -> seconds, the stage's start and the loading of weights among them.
        read, trained, generated: tokens. flops: of all.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    read: float = 0.0
    trained: float = 0.0
    generated: float = 0.0
    flops: float = 0.0

    @property
    def hours(self) -> float:
        """From the stage's start to its end."""
        return sum(self.seconds.values()) / 3600


def effort(works: list[tuple[str, Work]], setup: Setup) -> Effort:
    """All work of one stage: (name, work) one after the other."""
    speed = setup.planning.efficiency
    seconds = {"start": 60 * speed.start_minutes, "load": setup.weight_bytes / GB / speed.load_gbs}
    tokens = {"read": 0.0, "trained": 0.0, "generated": 0.0}
    flops = 0.0
    for name, work in works:
        seconds[name] = seconds.get(name, 0.0) + work_seconds(work, setup)
        flops += work_flops(work, setup)
        if isinstance(work, Training):
            tokens["trained"] += work.tokens
        elif isinstance(work, Generation):
            tokens["read"] += work.count * work.prompt
            tokens["generated"] += work.count * work.response
        else:
            tokens["read"] += work.tokens
    return Effort(seconds, **tokens, flops=flops)


def work_flops(work: Work, setup: Setup) -> float:
    """Floating-point operations."""
    shape = setup.shape
    if isinstance(work, Generation):
        # The head sees the prompt's last position and every new token.
        return work.count * _forward(setup, work.prompt + work.response, work.response)
    once = work.count * _forward(setup, work.prompt + work.response, 0)
    head = 2.0 * shape.head_parameters * work.count * work.response
    if not isinstance(work, Training):
        return once + head
    full = setup.lora is None
    times = (3 if full else 2) + (1 if setup.checkpointing else 0)
    return work.epochs * (times * once + (4 if full else 2) * head)


def work_seconds(work: Work, setup: Setup) -> float:
    """Seconds on all GPUs of the setup."""
    if isinstance(work, Generation):
        return _decoding_seconds(work, setup)
    gpu, speed = setup.planning.accelerator, setup.planning.efficiency
    share = speed.training if isinstance(work, Training) else speed.forward
    computing = work_flops(work, setup) / (setup.ranks * gpu.tflops * TERA * share)
    return max(computing, _moved_bytes(work, setup) / (gpu.link_gbs * GB))


def _forward(setup: Setup, length: float, head_rows: float) -> float:
    """FLOPs of one sequence's forward pass."""
    shape = setup.shape
    weights = shape.num_layers * shape.linear_parameters
    if setup.lora is not None:
        weights += setup.trained
    # The eager kernel also computes the half of the scores that is masked.
    scores = 4.0 if setup.facts.attention == "eager" else 2.0
    scores *= shape.query_size * length * length * shape.num_layers
    return 2.0 * weights * length + scores + 2.0 * shape.head_parameters * head_rows


def _moved_bytes(work: Pass, setup: Setup) -> float:
    """What each rank gathers and shares: weights per pass under ZeRO-3, gradients per step."""
    if setup.ranks == 1:
        return 0.0
    moved = 0.0
    training = isinstance(work, Training)
    if setup.zero == 3:
        if training:
            assert isinstance(work, Training)
            per_rank = work.tokens / work.steps / setup.ranks
            passes = work.steps * max(1, math.ceil(per_rank / setup.micro_tokens))
            passes *= 3 if setup.checkpointing else 2
        else:
            passes = max(1, math.ceil(work.tokens / setup.ranks / setup.micro_tokens))
        moved += passes * setup.weight_bytes
    if training:
        assert isinstance(work, Training)
        moved += work.steps * 2.0 * BF16 * setup.trained
    return moved


def _decoding_seconds(work: Generation, setup: Setup) -> float:
    """Rows are refilled as they end, so all but the last ones are decoded at full width.

    Copies of the model on ``span`` GPUs each share the prompts; of a copy's GPUs one works at a time.
    """
    gpu, speed = setup.planning.accelerator, setup.planning.efficiency
    span = generation_span(setup)
    mine = work.count / max(1, setup.ranks // span)
    if mine <= 0 or work.response <= 0:
        return 0.0
    rows = min(setup.rows, math.ceil(mine))
    steps = work.response * mine / rows + work.response
    context = work.prompt + work.response / 2
    bandwidth = gpu.bandwidth_gbs * GB * speed.decoding
    moving = (setup.weight_bytes + rows * context * setup.kv_bytes) / bandwidth
    computing = rows * _forward(setup, 1, 1) / (gpu.tflops * TERA * speed.forward)
    launching = setup.shape.num_layers * speed.launch_ms / 1000
    reading = mine * _forward(setup, work.prompt, 1) / (gpu.tflops * TERA * speed.forward)
    return reading + steps * max(moving, computing, launching)
