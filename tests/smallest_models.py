"""Random stand-ins of all lab models, one layer each and one token a character, to test files and faults.

They are never right, but all that a federation does happens with them: texts that end, pairs, training,
adapters, rewards.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lada.lab import LAB_MODELS
from lada.lab.recipes import RECIPES
from lada.models import build_network

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = string.ascii_letters + string.digits + " \n.,:;?!()+-*/=%$'\"_"
SETTINGS = (
    "data.num_train=8",
    "data.num_test=4",
    "data.num_public=16",
    "generation.max_new_tokens=64",
    "generation.temperature=1.0",  # near-uniform over some 80 tokens: most texts reach their end
)


def write_models(folder: Path) -> None:
    """One sub-folder per lab model, as `lada.lab` lays them out."""
    tokenizer = _tokenizer()
    for seed, name in enumerate(LAB_MODELS.values()):
        config = _config(RECIPES[name].model_type, tokenizer.get_vocab_size())
        network = build_network(config, seed=seed)
        path = folder / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tokenizer.save(str(path / "tokenizer.json"))
        weights = {key: value.contiguous() for key, value in network.state_dict().items()}
        del weights["lm_head.weight"]
        save_file(weights, path / "model.safetensors")


def _tokenizer() -> Tokenizer:
    words = {word: number for number, word in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _config(architecture: str, vocabulary: int) -> dict[str, object]:
    config: dict[str, object] = {
        "model_type": architecture,
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if architecture == "gemma2":
        config |= {"query_pre_attn_scalar": 8, "sliding_window": 2048}
    return config
