"""The ten real architectures with little width and depth and random weights, in folders as published.

Class, features and vocabulary size are the model's own (`lada.model_facts`); width, depth and heads are not,
and the tokenizer is the lab's, whose ids end long before the vocabulary does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from lada.asking import open_tokenizer
from lada.lab import WEIGHTS, short_name
from lada.model_facts import ModelFacts, known_models, model_facts
from lada.models import build_network

MODELS = tuple(sorted(known_models()))
CHAT = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


def scaled_facts(model: str, **changes: Any) -> ModelFacts:
    """A model's facts with a small shape; ``changes`` of the shape."""
    facts = model_facts(model)
    shape = facts.architecture
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": max(1, 4 * shape.num_kv_heads // shape.num_heads),
        "head_dim": 16,
        "max_positions": 2048,
        "query_scalar": shape.query_scalar and 16,
        "sliding_window": shape.sliding_window and 64,
    }
    return facts.model_copy(update={"architecture": shape.model_copy(update=small | changes)})


def write_scaled(folder: Path, model: str, *, seed: int = 0, files: int = 2, **changes: Any) -> Path:
    """Make the folder of a model.

    Args:
        files: that the weights are spread over.
        changes: of the small shape.
    """
    facts = scaled_facts(model, **changes)
    folder.mkdir(parents=True)
    tokenizer, ids = _tokenizer(facts)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = facts.config_json | ids
    network = build_network(config, seed=seed)
    _make_lively(network, tokenizer, config["eos_token_id"], seed)
    if facts.published_type is not None:
        config = _as_published(config, facts.published_type)
    _write(folder / "config.json", config)
    stated = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "Unknown"}
    if facts.prompt.kind == "chat":
        stated["chat_template"] = CHAT
    _write(folder / "tokenizer_config.json", stated)
    _write(folder / "generation_config.json", {"eos_token_id": [config["eos_token_id"], ids["eos_token_id"]]})
    write_weights(folder, network, files, tied=facts.architecture.tied_embeddings)
    return folder


def write_weights(folder: Path, network: Any, files: int, *, tied: bool) -> None:
    """Weights in bfloat16, as all ten are published, in one file or in several with an index."""
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in network.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    if files == 1:
        save_file(weights, folder / "model.safetensors")
        return
    found: dict[str, str] = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = dict(list(weights.items())[number::files])
        save_file(part, folder / name)
        found |= dict.fromkeys(part, name)
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": found})


def _tokenizer(facts: ModelFacts) -> tuple[Tokenizer, dict[str, Any]]:
    """The lab's tokenizer of the model, with a chat's tokens where it has chats, and config.json's ids."""
    tokenizer = open_tokenizer(WEIGHTS / short_name(facts.id))
    added = ["<bos>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(added)
    lab = json.loads((WEIGHTS / short_name(facts.id) / "config.json").read_text())
    ending = facts.prompt.end_of_turn
    return tokenizer, {
        "bos_token_id": tokenizer.token_to_id("<bos>"),
        "eos_token_id": lab["eos_token_id"] if ending is None else tokenizer.token_to_id(ending),
        "pad_token_id": lab["pad_token_id"],
    }


def _make_lively(network: Any, tokenizer: Tokenizer, eos: int, seed: int) -> None:
    """Give all tokens a part in common, which every hidden state then has too: other rows are never likely.

    The token that ends a response has more of it, and is among the likeliest at every step.
    """
    generator = torch.Generator().manual_seed(seed)
    size = tokenizer.get_vocab_size()
    with torch.no_grad():
        head = network.get_output_embeddings().weight
        common = torch.full((head.shape[1],), head.shape[1] ** -0.5)
        for matrix in {id(one): one for one in (network.get_input_embeddings().weight, head)}.values():
            matrix[:size] = torch.randn(size, head.shape[1], generator=generator) * 0.15 + common
            matrix[size:] = -common
        head[eos] += common


def _as_published(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """InternLM3's config.json: its own model_type, code of its own, positions by older names."""
    rope = dict(config["rope_parameters"])
    theta = rope.pop("rope_theta")
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    return rest | {
        "model_type": model_type,
        "architectures": ["InternLM3ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM"},
        "bias": False,
        "qkv_bias": False,
        "rope_theta": theta,
        "rope_scaling": rope,
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
