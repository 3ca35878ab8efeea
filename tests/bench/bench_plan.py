"""Seconds as the plan computes them against seconds measured, on one CPU core in float32.

A plan has one efficiency for training, one for passes without gradients and one for decoding. Each is taken
from one case, the first of its kind; what is shown is how far off the plan then is in the other cases: other
lengths, widths, depths and classes, full fine-tuning, checkpointing, more rows. The peak is that of a
square matrix product. Decoding of so few rows of such small models is bound by what each layer costs
whatever it computes, on a GPU by memory: there the plan has a term for either (``launch_ms``).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jobs.assumptions import Accelerator, Efficiency, Planning
from jobs.footprint import Setup
from jobs.workload import TERA, Generation, Pass, Training, Work, work_flops, work_seconds
from lada.config import GenerationOptions, LoraOptions, TrainOptions
from lada.language_model import LanguageModel
from lada.losses import PairLoss
from lada.model_facts import model_facts
from lada.models import build_network
from lada.training import Example, Term, fit, sequence_log_probs
from tests.bench.bench_generation import our_arm
from tests.bench.interleave import timed
from tests.bench.shapes import EOS, PAD, lengths, token_lists, word_tokenizer

VOCAB, HEAD_CHUNK, MICRO_TOKENS = 8_192, 256, 4096
REPETITIONS = 4


@dataclass(frozen=True)
class Case:
    """A model class with small shapes, and work for it.

    Attributes:
        work: training, forward or decoding. tokens: of a prompt, and of a response (the mean).
    """

    name: str
    work: str
    model: str = "Qwen/Qwen3-8B"
    hidden: int = 512
    layers: int = 6
    count: int = 8
    tokens: tuple[int, int] = (128, 128)
    lora: bool = True
    checkpointing: bool = False
    rows: int = 16

    def setup(self, planning: Planning) -> Setup:
        """As the plan sees it."""
        facts = model_facts(self.model)
        sizes = {
            "vocab_size": VOCAB,
            "hidden_size": self.hidden,
            "intermediate_size": 3 * self.hidden,
            "num_layers": self.layers,
            "num_heads": self.hidden // 64,
            "num_kv_heads": self.hidden // 128,
            "head_dim": 64,
        }
        shape = facts.architecture.model_copy(update=sizes)
        return Setup(
            facts=facts.model_copy(update={"architecture": shape}),
            lora=LoraOptions(rank=16, alpha=32) if self.lora else None,
            keeps_reference=False,
            ranks=1,
            zero=0,
            checkpointing=self.checkpointing,
            micro_tokens=MICRO_TOKENS,
            head_chunk=HEAD_CHUNK,
            rows=self.rows,
            longest_prompt=self.tokens[0],
            max_new_tokens=4 * self.tokens[1],
            responses=1,
            planning=planning,
        )


TRAINING = (
    Case("LoRA", "training"),
    Case("LoRA, computed again", "training", checkpointing=True),
    Case("full", "training", lora=False),
    Case("full, computed again", "training", lora=False, checkpointing=True),
    Case("texts four times as long", "training", count=4, tokens=(512, 512)),
    Case("prompts alone longer", "training", tokens=(448, 64)),
    Case("twice as wide", "training", hidden=1024, layers=3, count=4),
    Case("Llama's class", "training", model="meta-llama/Meta-Llama-3-8B"),
    Case("Gemma 2's class", "training", model="google/gemma-2-2b"),
)
FORWARD = (
    Case("a pass", "forward"),
    Case("texts four times as long", "forward", count=4, tokens=(512, 512)),
    Case("twice as wide", "forward", hidden=1024, layers=3, count=4),
    Case("Gemma 2's class", "forward", model="google/gemma-2-2b"),
)
DECODING = (
    Case("16 rows", "decoding", count=64, tokens=(110, 80)),
    Case("32 rows", "decoding", count=128, tokens=(110, 80), rows=32),
    Case("prompts four times as long", "decoding", count=64, tokens=(440, 80)),
    Case("half as deep", "decoding", count=64, tokens=(110, 80), layers=3),
    Case("twice as wide", "decoding", count=64, tokens=(110, 80), hidden=1024, layers=3),
)


def bench() -> None:
    """Time all cases and print planned by measured seconds."""
    peak = _peak_tflops()
    print(f"  peak of a float32 product: {1000 * peak:.0f} GFLOP/s")
    for cases in (TRAINING, FORWARD, DECODING):
        arms = {case.name: _arm(case) for case in cases}
        times = timed({name: run for name, (run, _) in arms.items()}, repetitions=REPETITIONS)
        efficiency = None
        for case in cases:
            work, measured = arms[case.name][1], statistics.median(times[case.name])
            if efficiency is None:
                efficiency = _efficiency(case, work, measured, peak)
                print(f"  {case.work}: {efficiency:.0%} of the peak reached with {case.name}")
            setup = case.setup(_planning(peak, efficiency))
            planned, giga = work_seconds(work, setup), work_flops(work, setup) / 1e9
            print(
                f"  {case.work:9s} {case.name:28s} measured {measured:7.3f} s  planned {planned:7.3f} s  "
                f"ratio {planned / measured:4.2f}  ({giga:.0f} GFLOP)",
                flush=True,
            )


def _peak_tflops(size: int = 1024, times: int = 8) -> float:
    """10^12 FLOP/s of a square product."""
    left, right = torch.randn(size, size), torch.randn(size, size)

    def products() -> None:
        for _ in range(times):
            left @ right

    taken = timed({"product": products}, repetitions=6)["product"]
    return 2 * size**3 * times / min(taken) / TERA


def _planning(tflops: float, share: float) -> Planning:
    """One CPU core: nothing but arithmetic counts."""
    return Planning(
        accelerator=Accelerator(name="a core", tflops=tflops, bandwidth_gbs=1e6),
        efficiency=Efficiency(
            training=share, forward=share, decoding=1.0, launch_ms=1e-9, padding=1.0, gathered_padding=1.0
        ),
    )


def _efficiency(case: Case, work: Work, measured: float, tflops: float) -> float:
    """Share of the peak with which the plan would have said what was measured."""
    return work_seconds(work, case.setup(_planning(tflops, 1.0))) / measured


def _arm(case: Case) -> tuple[Callable[[], Any], Work]:
    """What is timed, and what the plan is told of it."""
    draw = random.Random(3)
    model = _model(case)
    prompt, response = case.tokens
    if case.work == "decoding":
        prompts = token_lists([prompt] * case.count, VOCAB, draw)
        limits = lengths(case.count, response, 0.5, 16, 4 * response, draw)
        options = GenerationOptions(max_new_tokens=4 * response, batch_size=case.rows)
        return our_arm(model, prompts, limits, options), Generation(
            case.count, prompt, statistics.fmean(limits)
        )
    examples = [
        Example(str(i), tuple(one[:prompt]), ((*one[prompt:-1], EOS),), (Term("server", 0, None),))
        for i, one in enumerate(token_lists([prompt + response] * case.count, VOCAB, draw))
    ]
    if case.work == "forward":
        return (
            lambda: sequence_log_probs(model, examples, micro_tokens=MICRO_TOKENS, head_chunk=HEAD_CHUNK),
            Pass(case.count, prompt, response),
        )
    options = TrainOptions(learning_rate=0.0, max_steps=1, batch_size=case.count, micro_tokens=MICRO_TOKENS)
    return (
        lambda: fit(model, examples, options, PairLoss("cross_entropy"), learning_rate=0.0, seed=0),
        Training(case.count, prompt, response, epochs=1, steps=1),
    )


def _model(case: Case) -> LanguageModel:
    setup = case.setup(Planning())
    config = setup.facts.config_json | {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    model = LanguageModel(
        build_network(config, seed=0),
        word_tokenizer(VOCAB),
        lora=setup.lora,
        checkpointing=setup.checkpointing,
    )
    model.end_ids = frozenset()  # random weights end nowhere in particular
    return model
