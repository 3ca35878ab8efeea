"""Models and data of the benchmarks: random Qwen3 weights, lengths as in MathInstruct."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lada.config import LoraOptions
from lada.language_model import LanguageModel
from lada.models import build_network

LORA = LoraOptions(rank=16, alpha=32)
SPECIAL = ("<pad>", "<unk>", "</s>")
PAD, EOS = 0, 2


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    inter: int
    heads: int
    kv_heads: int
    vocab: int
    pairs: int
    """Preference pairs of a training step."""
    steps: int
    """Training steps of one repetition."""
    decodings: int
    """Repetitions of the decoding arms."""

    def config(self) -> dict[str, object]:
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inter,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 64,
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }


SHAPES = {
    "S": Shape(256, 6, 768, 4, 2, 32_768, pairs=4, steps=2, decodings=4),
    "M152": Shape(512, 12, 1536, 8, 4, 151_936, pairs=2, steps=1, decodings=2),
}


def word(token: int) -> str:
    return SPECIAL[token] if token < len(SPECIAL) else f"t{token}"


def words(tokens: list[int]) -> str:
    return " ".join(word(token) for token in tokens)


def word_tokenizer(vocab: int) -> Tokenizer:
    """One word a token."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def build_model(shape: Shape) -> LanguageModel:
    """A model with an adapter that differs from its base."""
    model = LanguageModel(build_network(shape.config(), seed=0), word_tokenizer(shape.vocab), lora=LORA)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01, generator=generator)
    return model


def lengths(count: int, median: float, sigma: float, low: int, high: int, draw: random.Random) -> list[int]:
    return [min(high, max(low, int(draw.lognormvariate(math.log(median), sigma)))) for _ in range(count)]


def token_lists(sizes: list[int], vocab: int, draw: random.Random) -> list[list[int]]:
    return [[draw.randrange(10, vocab) for _ in range(size)] for size in sizes]
