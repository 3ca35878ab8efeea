"""A model's folder -> a `LanguageModel` on its device, alone or as one of several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lada.asking import open_asking, open_tokenizer
from lada.config import LoraOptions, PromptForm
from lada.language_model import LanguageModel
from lada.models import hollow, read_config
from lada.ranks import ALONE, Ranks
from lada.weights import Origin, fill
from lada.zero import shard, sharing

CHECKPOINTING = "LADA_CHECKPOINTING"
"""Environment variable: not empty where activations are computed again (less memory, the same numbers)."""


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    lora: LoraOptions | None = None,
    seed: int = 0,
    ranks: Ranks = ALONE,
    form: PromptForm | None = None,
    attention: str | None = None,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> LanguageModel:
    """A model from a folder with config.json, a tokenizer and its weights in one file or several.

    Every tensor is read once, onto ``device``: there is never a second copy of the model.

    Args:
        form: how it is asked; None: plain text.
        attention: kernel; None: ``eager`` where scores are capped, else ``sdpa``.

    Raises:
        ModelError: when a file is missing or does not fit the others; names it.
    """
    config = read_config(folder)
    tokenizer = open_tokenizer(folder)
    precision = getattr(torch, dtype)
    tied = bool(config.get("tie_word_embeddings"))
    network = hollow(config, precision, attention, folder)
    tied = tied or bool(network.config.tie_word_embeddings)
    share = sharing(ranks) if ranks.shards else None
    fill(network, folder, device=torch.device(device), dtype=precision, tied=tied, placed=share)
    network.tie_weights()
    network.to(device)  # what it computes for itself, such as frequencies of positions
    model = LanguageModel(
        network.eval(),
        tokenizer,
        lora=lora,
        seed=seed,
        ranks=ranks,
        asking=open_asking(folder, form),
        origin=None if lora else Origin(folder, precision),
        checkpointing=checkpointing,
    )
    if ranks.shards:
        shard(model)
    return model


def open_on_rank(ranks: Ranks, folder: Path, options: Mapping[str, Any]) -> LanguageModel:
    """`load_model` on one of several ranks."""
    return load_model(folder, ranks=ranks, device=ranks.device, **options)
