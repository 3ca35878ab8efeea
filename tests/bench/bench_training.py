"""A preference-training step of ours against TRL's DPOTrainer on the same model, pairs and adapter.

T2: TRL without gradient checkpointing and with cached reference log-probabilities. T3: T2 with its head on
response positions only, as TRL does on GPUs; forced here through a private name of the pinned version.
TRL's collation stands outside the clock; our step is a whole call of `fit`, optimiser set-up included.
"""

from __future__ import annotations

import random
import tempfile
from typing import Any
from unittest import mock

import torch
import trl
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast
from trl.trainer import utils as trl_utils

from lada.config import TrainOptions
from lada.language_model import LanguageModel
from lada.losses import PairLoss
from lada.models import build_network
from lada.training import Example, Term, fit, sequence_log_probs, with_reference
from tests.bench.interleave import Arm, compare
from tests.bench.shapes import EOS, LORA, Shape, build_model, lengths, token_lists, words

PINNED = "1.16"
REPETITIONS = 4
OPTIONS = TrainOptions(learning_rate=0.0, max_steps=1, batch_size=1024)


def make_examples(shape: Shape) -> list[Example]:
    draw = random.Random(1)
    count = shape.pairs * shape.steps
    prompts, chosen, rejected = (
        token_lists(lengths(count, median, sigma, low, high, draw), shape.vocab, draw)
        for median, sigma, low, high in ((110, 0.45, 40, 320), (150, 0.5, 24, 420), (120, 0.6, 20, 420))
    )
    return [
        Example(str(i), tuple(p), ((*c, EOS), (*r, EOS)), (Term("server", 0, 1),))
        for i, (p, c, r) in enumerate(zip(prompts, chosen, rejected, strict=True))
    ]


def our_arm(model: LanguageModel, examples: list[Example], pairs: int) -> Arm:
    batches = [examples[i : i + pairs] for i in range(0, len(examples), pairs)]

    def run() -> list[float]:
        logs = [fit(model, batch, OPTIONS, PairLoss(), learning_rate=0.0, seed=0) for batch in batches]
        return [log[0].objective for log in logs]

    return run


def trl_trainer(model: LanguageModel, examples: list[Example], shape: Shape, folder: str) -> Any:
    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    rows = [
        {
            "prompt": words(list(e.prompt)) + " ",
            "chosen": words(list(e.responses[0])),
            "rejected": words(list(e.responses[1])),
        }
        for e in examples
    ]
    arguments = trl.DPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=shape.pairs,
        max_length=None,
        beta=0.1,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    adapter = LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        lora_dropout=0.0,
        target_modules=list(LORA.targets),
        task_type="CAUSAL_LM",
    )
    trainer = trl.DPOTrainer(
        model=build_network(shape.config(), seed=0),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    ours = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(ours[name])
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_arm(trainer: Any, examples: list[Example], pairs: int, *, compact: bool) -> Arm:
    data = [trainer.train_dataset[i] for i in range(len(examples))]
    batches = [trainer.data_collator(data[i : i + pairs]) for i in range(0, len(data), pairs)]
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, fused=True)

    def run() -> list[float]:
        losses = []
        with mock.patch.object(trl_utils, "_use_triton", lambda device: compact):
            for batch in batches:
                losses.append(float(trainer.training_step(trainer.model, dict(batch))))
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        return losses

    return run


def bench(shape: Shape) -> None:
    model = build_model(shape)
    examples = make_examples(shape)
    with model.reference():
        reference = sequence_log_probs(model, examples, micro_tokens=4096, head_chunk=256)
    examples = with_reference(examples, reference)
    arms = {"ours": our_arm(model, examples, shape.pairs), "A/A": our_arm(model, examples, shape.pairs)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(model, examples, shape, folder)
        arms["T2"] = trl_arm(trainer, examples, shape.pairs, compact=False)
        if trl.__version__.startswith(PINNED):
            arms["T3"] = trl_arm(trainer, examples, shape.pairs, compact=True)
        else:
            print(f"  T3 left out: its patch is for trl {PINNED}, found {trl.__version__}")
        results = compare(arms, base="ours", repetitions=REPETITIONS)
    for name, losses in results.items():
        print(f"  loss of {name:5s} {' '.join(f'{loss:.6f}' for loss in losses)}")
