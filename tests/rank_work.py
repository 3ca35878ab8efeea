"""All that ranks compute together, in one go: run by torchrun, or by a test alone, with the same results.

    torchrun --standalone --nproc-per-node=2 -m tests.rank_work MODELS OUT CASE …

A case is e.g. ``qwen3-lora-z2``; OUT/<case>.json gets what rank 0 saw, OUT/<case>.safetensors what was
trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from lada import zero
from lada.config import GenerationOptions, TrainOptions
from lada.errors import end
from lada.generation import Generated, generate
from lada.knowledge import letter_knowledge, top_knowledge
from lada.language_model import LanguageModel, State
from lada.loading import load_model, open_on_rank
from lada.losses import PairLoss
from lada.models import build_network
from lada.ranks import Ranks, joined
from lada.selection.features import FeatureOptions, prompt_features
from lada.training import Example, Hooks, fit, sequence_log_probs, with_reference
from tests.tiny_models import EOS, FIRST_WORD, LORA, VOCAB, random_pairs, tiny_config, tiny_tokenizer, word

PAIRS = random_pairs(7)
"""No multiple of 2 or 3: shares are ragged."""
PROMPTS = [" ".join(word(FIRST_WORD + (7 * i + j) % 50) for j in range(2 + i % 4)) for i in range(5)]
TRAINING = TrainOptions(learning_rate=0.01, epochs=2, batch_size=4, micro_tokens=80, weight_decay=0.1)
"""The last batch of an epoch has three samples; a micro-batch holds one or two."""
GREEDY = GenerationOptions(max_new_tokens=6, batch_size=2)
SAMPLED = GenerationOptions(max_new_tokens=6, batch_size=2, temperature=0.7)
MICRO_TOKENS, HEAD_CHUNK = 60, 16


TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LORA},
    "again": {"lora": LORA, "checkpointing": True},
    "drop": {"lora": LORA.model_copy(update={"dropout": 0.5})},
    "half": {"dtype": "bfloat16"},
    "mixed": {"lora": LORA, "dtype": "bfloat16"},
}
"""Full, LoRA, activations computed again, dropout; in bfloat16 full and with adapters in float32."""


class Case(NamedTuple):
    """A model and how it is trained."""

    architecture: str
    trained: str
    zero: int

    def __str__(self) -> str:
        return f"{self.architecture}-{self.trained}-z{self.zero}"


def case(name: str) -> Case:
    """The opposite of ``str``."""
    architecture, trained, zero = name.split("-")
    return Case(architecture, trained, int(zero[1:]))


def write_models(folder: Path) -> Path:
    """Tiny models as folders; Llama's with a head of its own."""
    for seed, name in enumerate(("qwen3", "llama", "gemma2")):
        config = tiny_config(name, tie_word_embeddings=name != "llama")
        weights = {key: one.clone() for key, one in build_network(config, seed=seed).state_dict().items()}
        if config["tie_word_embeddings"]:
            del weights["lm_head.weight"]
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        tiny_tokenizer().save(str(folder / name / "tokenizer.json"))
        save_file(weights, folder / name / "model.safetensors")
    return folder


def open_case(found: Case, models: Path, ranks: Ranks | None = None) -> LanguageModel:
    """Its model, on all ranks."""
    folder, options = models / found.architecture, TRAINED[found.trained]
    if ranks is None:
        return load_model(folder, **options)
    return ranks.open(open_on_rank, folder, options)


def log_probs(model: LanguageModel, pairs: list[Example] = PAIRS) -> list[Any]:
    """Of every response."""
    return sequence_log_probs(model, pairs, micro_tokens=MICRO_TOKENS, head_chunk=HEAD_CHUNK)


def everything(model: LanguageModel) -> tuple[dict[str, Any], State]:
    """What a stage may do with a model, in the order of LaDa's ``learn``."""
    found: dict[str, Any] = {"before": log_probs(model)}
    first = {key: value + 0.01 for key, value in model.state().items()}
    model.set_reference(first)
    with model.reference():
        found["reference"] = log_probs(model)
    found["again"] = log_probs(model)
    found["knowledge"] = knowledge(model)
    found["greedy"] = [vars(one) for one in generate_of(model, GREEDY)]
    known = with_reference(PAIRS, found["reference"])

    def measure(batch: list[Example]) -> list[Example]:
        found.setdefault("inside", []).append(log_probs(model, batch))
        return batch[1:] if len(batch) == 4 else batch

    loss = PairLoss(kind="preference", beta=0.1)
    hooks = Hooks(keep=measure)
    logs = fit(model, known, TRAINING, loss, learning_rate=0.01, seed=3, head_chunk=HEAD_CHUNK, hooks=hooks)
    found["logs"] = [[one.objective, one.grad_norm, [vars(term) for term in one.losses]] for one in logs]
    found["after"] = log_probs(model)
    with model.merged():
        found["features"] = prompt_features(model, PROMPTS, FeatureOptions(), micro_tokens=20).tolist()
    found["sampled"] = [vars(one) for one in generate_of(model, SAMPLED)]
    trained = model.state()
    supervised = PairLoss(kind="cross_entropy")
    fit(model, PAIRS, TRAINING, supervised, learning_rate=0.01, seed=4, head_chunk=HEAD_CHUNK)
    found["last"] = log_probs(model)
    model.load_state(trained)
    found["restored"] = log_probs(model)
    return found, trained


def knowledge(model: LanguageModel) -> list[Any]:
    """What FedMKT takes of texts: the likeliest tokens, and four letters."""
    texts = [replace(one, responses=one.responses[1:]) for one in PAIRS]
    sizes = {"micro_tokens": MICRO_TOKENS, "head_chunk": HEAD_CHUNK}
    top = top_knowledge(model, texts, [1] * len(texts), num_top=2, num_tokens=VOCAB, **sizes)
    assert top.ids is not None
    letters = letter_knowledge(
        model, [replace(one, responses=((EOS,),)) for one in texts], [5, 6, 7, 8], **sizes
    )
    return [top.ce.tolist(), top.ids.tolist(), top.lengths, letters.ce.tolist()]


def generate_of(model: LanguageModel, options: GenerationOptions) -> list[Generated]:
    """Responses to `PROMPTS`."""
    return generate(model, PROMPTS, options, seed=5)


def share(model: LanguageModel) -> float:
    """Of all weights, how much this rank holds between two passes."""
    held = sum(one.numel() + getattr(one, "ds_tensor", one[:0]).numel() for one in model.network.parameters())
    return held / sum(getattr(one, "ds_numel", one.numel()) for one in model.network.parameters())


class Widest:
    """The most tokens of one pass that this rank has made, padding and all."""

    def __init__(self) -> None:
        self.tokens, self._hidden = 0, LanguageModel.hidden

    def hidden(self, model: LanguageModel, input_ids: Tensor, *rest: Any) -> Tensor:
        """To be called in the place of the model's own."""
        self.tokens = max(self.tokens, input_ids.numel())
        return self._hidden(model, input_ids, *rest)


def each_case(names: Iterable[str], compute: Callable[[Case, Ranks], None]) -> None:
    """Every case, one after the other, in the same processes; rank 0 computes, the others follow."""
    torch.set_num_threads(1)
    zero.KEPT_WHOLE = 40  # else nothing of models this small would be shared
    with joined(0) as joint:
        for found in map(case, names):
            ranks = Ranks(joint.index, joint.size, zero=found.zero, commands=joint._commands)
            if not ranks.leads:
                ranks.follow()
                continue
            compute(found, ranks)
            ranks.dismiss()
        if not joint.leads:
            joint.follow()


def main(models: Path, out: Path, names: list[str]) -> None:
    """Everything of each case."""

    def compute(found: Case, ranks: Ranks) -> None:
        model, widest = open_case(found, models, ranks), Widest()
        model.hidden = partial(widest.hidden, model)  # type: ignore[method-assign]
        seen, state = everything(model)
        seen |= {"share": share(model), "widest": widest.tokens}
        (out / f"{found}.json").write_text(json.dumps(seen))
        save_file(state, out / f"{found}.safetensors")

    each_case(names, compute)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    end(0)
