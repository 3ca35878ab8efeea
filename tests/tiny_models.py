"""Tiny random models of the paper's four architectures, and a tokenizer of made-up words."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lada.config import LoraOptions
from lada.language_model import LanguageModel
from lada.models import build_network
from lada.training import Example, Term

torch.set_num_threads(1)  # tiny products are slower on several threads

VOCAB = 64
PAD, BOS, EOS = 0, 1, 2
FIRST_WORD = 4
ARCHITECTURES = ("gemma2", "llama", "qwen2", "qwen3")
LORA = LoraOptions(rank=4, alpha=8)


def word(token: int) -> str:
    return f"<{token}>" if token < FIRST_WORD else f"t{token}"


def words(tokens: tuple[int, ...] | list[int]) -> str:
    return " ".join(word(token) for token in tokens)


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(VOCAB)}, unk_token=word(3)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([word(i) for i in range(FIRST_WORD)])
    return tokenizer


def tiny_config(architecture: str = "qwen3", **changes: Any) -> dict[str, Any]:
    config = {
        "model_type": architecture,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.2,  # wide, so that logits differ and greedy choices are clear
    }
    if architecture == "gemma2":
        config |= {"sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        config |= {"query_pre_attn_scalar": 8}
    return config | changes


def tiny_model(
    architecture: str = "qwen3",
    *,
    lora: LoraOptions | None = None,
    dtype: str = "float32",
    seed: int = 0,
    **changes: Any,
) -> LanguageModel:
    network = build_network(tiny_config(architecture, **changes), seed=seed, dtype=dtype)
    return LanguageModel(network, tiny_tokenizer(), lora=lora, seed=seed)


def random_ids(draw: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw.randrange(FIRST_WORD, VOCAB) for _ in range(draw.randint(low, high)))


def random_pairs(count: int, *, seed: int = 0) -> list[Example]:
    """Preference pairs of mixed lengths; every third chosen response has no EOS."""
    draw = random.Random(seed)
    examples = []
    for number in range(count):
        ending = () if number % 3 == 2 else (EOS,)
        responses = (random_ids(draw, 1, 14) + ending, (*random_ids(draw, 1, 14), EOS))
        examples.append(
            Example(f"q{number}", (BOS, *random_ids(draw, 3, 12)), responses, (Term("server", 0, 1),))
        )
    return examples


def untangled(model: LanguageModel, prompt_ids: list[int], limit: int) -> list[int]:
    """The new tokens of one prompt, alone, greedily through `generate` of transformers."""
    ids = torch.tensor([prompt_ids])
    out = model.network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=model.eos_id,
        pad_token_id=model.pad_id,
    )
    return out[0, ids.shape[1] :].tolist()
