"""Tokens, FLOPs and seconds of the three kinds of work that stages consist of.

FLOPs: 2 per weight and token forward, the attention's scores (their causal half), the head at response
positions alone; backward as much again for the inputs and, in full fine-tuning, for the weights; with
checkpointing one forward pass more. Seconds: the larger of arithmetic at the assumed efficiency and of what
has to be moved meanwhile; in generation under ZeRO-3 both, since little is computed on what was gathered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jobs.footprint import BF16, FP32, GB, Setup

TERA = 1e12
FREE_ROWS = 8
"""One in so many rows is free before new prompts are read (`lada.decoding.Decoder.wants_rows`)."""


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
    computed = work_flops(work, setup) * _padding(work, setup)
    computing = computed / (setup.ranks * gpu.tflops * TERA * share)
    return max(computing, _moved_bytes(work, setup) / (setup.link_gbs * GB))


def _padding(work: Pass, setup: Setup) -> float:
    """Tokens that are computed, by tokens that are there; without gradients all texts stand by length."""
    speed = setup.planning.efficiency
    if not isinstance(work, Training):
        return 1.0
    return speed.gathered_padding if setup.shards else speed.padding


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
    """What each rank takes from others: weights in each pass under ZeRO-3, and gradients.

    Gradients go in float32: under ZeRO-2 and ZeRO-3 to the rank that holds their share, after every
    micro-batch; else once a step. The weights that ZeRO-1 and ZeRO-2 have stepped go to all.
    """
    if setup.ranks == 1:
        return 0.0
    own = BF16 if setup.lora is None else FP32
    if not isinstance(work, Training):
        passes = max(1, math.ceil(work.tokens / setup.ranks / setup.micro_tokens))
        moved = passes * setup.weight_bytes if setup.shards else 0.0
    else:
        per_rank = work.tokens * _padding(work, setup) / work.steps / setup.ranks
        passes = work.steps * max(1, math.ceil(per_rank / setup.micro_tokens))
        gathers = (3 if setup.checkpointing else 2) if setup.shards else 0
        moved = passes * gathers * setup.weight_bytes
        moved += FP32 * setup.trained * (passes if setup.zero >= 2 else work.steps)
        moved += own * setup.trained * (work.steps if setup.zero < 3 else 0)
    return moved * _others(setup)


def _others(setup: Setup) -> float:
    """Share of what is gathered that other ranks hold."""
    return 1 - 1 / setup.ranks


def _decoding_seconds(work: Generation, setup: Setup) -> float:
    """Each rank answers its share of the prompts; rows are refilled as they end, the last are waited for.

    Under ZeRO-3 all ranks' passes are in step, and each pass gathers all weights, be it one token for every
    row or new prompts that are read.
    """
    gpu, speed = setup.planning.accelerator, setup.planning.efficiency
    mine = math.ceil(work.count / setup.ranks)
    if mine <= 0 or work.response <= 0:
        return 0.0
    rows = min(setup.rows, mine)
    steps, admissions = _decoding_passes(work, setup, mine)
    context = work.prompt + work.response / 2
    bandwidth = gpu.bandwidth_gbs * GB * speed.decoding
    moving = (setup.weight_bytes + rows * context * setup.kv_bytes) / bandwidth
    computing = rows * _forward(setup, 1, 1) / (gpu.tflops * TERA * speed.forward)
    launching = setup.shape.num_layers * speed.launch_ms / 1000
    reading = mine * _forward(setup, work.prompt, 1) / (gpu.tflops * TERA * speed.forward)
    gathering = setup.weight_bytes * _others(setup) / (setup.link_gbs * GB) if setup.shards else 0.0
    return reading + steps * max(moving, computing, launching) + (steps + admissions) * gathering


def _decoding_passes(work: Generation, setup: Setup, mine: int) -> tuple[float, int]:
    """Passes of a token for every row, and passes that read new prompts.

    Within 15 % of simulated queues of 125 to 3000 prompts a rank in 32 or 64 rows. Choice: the longest
    response is added whole, which is too much for queues that fill no row twice.
    """
    full = setup.rows * (1 - 1 / (2 * FREE_ROWS))
    longest = min(setup.longest_response * work.response, setup.max_new_tokens)
    at_a_time = max(1, setup.rows // FREE_ROWS)
    if setup.prompt_tokens is not None:
        at_a_time = max(1, min(at_a_time, int(setup.prompt_tokens // max(1, work.prompt))))
    return work.response * mine / full + longest, math.ceil(mine / at_a_time)
