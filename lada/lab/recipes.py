"""How each of the ten lab models is made: its real architecture in small, what it is taught, how long.

Choice: what a model is bad at follows from what it was hardly taught, not from tampering with it. The two
server models see all general domains; a client model sees some domains ten times less often. Every model sees
its own private facts and nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lada.data import lab, lab_facts
from lada.lab.curriculum import Mixture
from lada.lab.pretraining import Schedule
from lada.lab.tokenizing import EOS_ID, PAD_ID

RARE, OWN_FACTS = 0.1, 1.3
HEADS, KEY_VALUE_HEADS = 4, 2
CONTEXT = 2048


@dataclass(frozen=True)
class Recipe:
    """One lab model.

    Attributes:
        model_type: of transformers; ``family``: its tokenizer, a key of `tokenizing.CUTS`.
        hidden, layers, feed_forward: sizes.
        strong: general domains that are taught in full; all others have the weight `RARE`.
        schedule: see `Schedule`.
        seed: of the initial weights and the samples.
        write: share of samples that write a new question.
        emphasis: domain -> weight in place of 1 or `RARE`.
        refresh: steps of a last lesson with the weights ``refresh_emphasis``; 0 for none.
    """

    model_type: str
    family: str
    hidden: int
    layers: int
    feed_forward: int
    strong: tuple[str, ...]
    schedule: Schedule
    seed: int
    write: float = 0.0
    emphasis: Mapping[str, float] = field(default_factory=dict)
    refresh: int = 0
    refresh_emphasis: Mapping[str, float] = field(default_factory=dict)

    def mixture(self, model: str, *, refresh: bool = False) -> Mixture:
        """What the model is taught, in its main or in its last lesson."""
        emphasis = self.refresh_emphasis if refresh else self.emphasis
        weights = {
            dataset: {
                name: emphasis.get(name, 1.0 if name in self.strong else RARE)
                for name in lab.GENERAL[dataset]
            }
            | {lab_facts.domain(model): emphasis.get("facts", OWN_FACTS)}
            for dataset in lab.DATASETS
        }
        return Mixture(weights, write=self.write)

    def config(self, vocabulary: int) -> dict[str, Any]:
        """The content of config.json."""
        head = self.hidden // HEADS
        config = {
            "model_type": self.model_type,
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "head_dim": head,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.08,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        }
        if self.model_type == "qwen2":
            del config["head_dim"]
        if self.model_type == "gemma2":
            config |= {"query_pre_attn_scalar": head, "sliding_window": CONTEXT}
        return config


_ALL = tuple(name for dataset in lab.DATASETS for name in lab.GENERAL[dataset])

# What a model of this size learns first: it needs only reminders of these in a last lesson.
_EASY = dict.fromkeys((*lab.GENERAL["lab-math"], "orders", "days"), 0.5)

RECIPES = {
    "gemma-2-2b": Recipe(
        "gemma2", "gemma", 80, 3, 160, ("sums", "money", "sets", "moves"), Schedule(900), seed=11
    ),
    "gemma-2-27b": Recipe(
        "gemma2",
        "gemma",
        96,
        3,
        256,
        ("sums", "ages", "gaps", "orders", "sets", "moves"),
        Schedule(1400),
        seed=12,
    ),
    "meta-llama-3-8b": Recipe(
        "llama",
        "llama",
        96,
        3,
        256,
        ("ages", "units", "sequences", "days", "passages", "sets"),
        Schedule(1300),
        seed=13,
    ),
    "qwen3-0.6b": Recipe("qwen3", "qwen", 80, 3, 160, ("units", "passages"), Schedule(700), seed=14),
    "qwen3-1.7b": Recipe(
        "qwen3", "qwen", 80, 3, 192, ("units", "money", "passages", "moves"), Schedule(900), seed=15
    ),
    "qwen3-4b": Recipe(
        "qwen3",
        "qwen",
        96,
        3,
        256,
        ("sums", "money", "gaps", "orders", "moves", "sets"),
        Schedule(1200),
        seed=16,
        refresh=700,
        refresh_emphasis={"sums": 2.0, "money": 2.0, "gaps": 2.0, "facts": 2.0},
    ),
    "qwen3-8b": Recipe(
        "qwen3",
        "qwen",
        96,
        3,
        320,
        ("sums", "ages", "units", "gaps", "orders", "days", "sets", "moves"),
        Schedule(1200),
        seed=17,
        refresh=400,
        refresh_emphasis={"sums": 2.0, "ages": 2.0, "units": 2.0, "orders": 0.3, "days": 0.3},
    ),
    "qwen3-32b": Recipe(
        "qwen3",
        "qwen",
        128,
        4,
        320,
        _ALL,
        Schedule(5000),
        seed=18,
        write=0.06,
        refresh=1300,
        refresh_emphasis=_EASY | {"sets": 3.0, "passages": 3.0, "swaps": 3.0},
    ),
    "qwen2.5-72b-instruct": Recipe(
        "qwen2",
        "qwen",
        128,
        4,
        384,
        _ALL,
        Schedule(3200),
        seed=19,
        write=0.06,
        emphasis={"sets": 2.5, "passages": 2.5, "swaps": 2.5},
        # The committed weights had two such lessons, of 2400 and 1300 steps (manifest.json).
        refresh=3700,
        refresh_emphasis={
            "days": 2.0,
            "orders": 2.0,
            "sums": 1.5,
            "swaps": 0.3,
            "passages": 0.3,
            "facts": 0.5,
        },
    ),
    "internlm3-8b-instruct": Recipe(
        "llama",
        "internlm",
        96,
        3,
        256,
        ("sums", "sequences", "gaps", "orders", "passages", "swaps"),
        Schedule(1100),
        seed=20,
    ),
}
