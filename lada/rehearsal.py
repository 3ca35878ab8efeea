"""Stand-ins of the real models for a dress rehearsal: `python -m lada rehearsal-models`.

A folder of models as `make stage` leaves it, for `TIER=rehearsal`: each model's own class, features and
vocabulary size (configs/models), few and narrow layers, random weights in its own precision, and the
tokenizer of its family in the lab. They know nothing: they write random words, now and then an answer line,
and an end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from lada.architecture import Architecture
from lada.config import PromptForm, derive_seed
from lada.errors import ConfigError
from lada.lab import weights_folder
from lada.lab.tokenizing import EOS, EOS_ID, PAD, PAD_ID
from lada.model_facts import ModelFacts, model_facts
from lada.models import build_network
from lada.records import LETTERS
from lada.rundir import write_atomic
from lada.staged import REHEARSED, is_rehearsed

BOS = "<|bos|>"
ANSWERS = tuple(f"\nThe answer is {letter}.\n" for letter in LETTERS)
"""Tokens that each write an answer line: random words alone would never make one."""
HIDDEN, LAYERS, HEADS = 64, 2, 4
SPREAD, SHARED, LEADING = 0.05, 2.0, 1.0
"""Of embeddings: standard deviation; length of what those of the tokenizer's tokens have in common; and of
what leads from an answer line to the end."""
RATES = {"end": 1 / 400, "answer": 1 / 100}
"""Wanted probability of the end, and of each answer line, after any other token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_models(
    models: Iterable[str], folder: Path, *, seed: int = 0, shard_bytes: int | None = None
) -> list[Path]:
    """Make what is missing of a folder of rehearsal models, one sub-folder each.

    Args:
        models: ids on the model hub.
        shard_bytes: weights are cut into files of this size, as those of large models are; None: one file.

    Returns:
        The folders that were made.

    Raises:
        ConfigError: nothing is known of a model; or the folder holds models that are not of a rehearsal.
    """
    strange = [one.name for one in folder.iterdir() if _is_other_model(one)] if folder.is_dir() else []
    if strange:
        raise ConfigError(f"{folder} holds models of another kind ({strange[0]}): name another folder")
    made = []
    for model in models:
        facts, place = model_facts(model), folder / model.rpartition("/")[2]
        if is_rehearsed(place):
            continue
        hidden = folder / f".{place.name}"
        shutil.rmtree(hidden, ignore_errors=True)
        _write(facts, hidden, seed, shard_bytes)
        hidden.rename(place)
        made.append(place)
    return made


def small(shape: Architecture) -> Architecture:
    """A model's shapes with few narrow layers: its features, its vocabulary and its kinds of ratios stay."""
    head = HIDDEN // HEADS * (1 if shape.query_size == shape.hidden_size else 2)
    changes = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_kv_heads": max(1, HEADS * shape.num_kv_heads // shape.num_heads),
        "head_dim": head,
        "query_scalar": None if shape.query_scalar is None else head,
        "sliding_window": None if shape.sliding_window is None else HIDDEN,
    }
    return shape.model_copy(update=changes)


def _is_other_model(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and not is_rehearsed(folder)


def _write(facts: ModelFacts, folder: Path, seed: int, shard_bytes: int | None) -> None:
    tokenizer, named = _tokenizer(facts)
    ids = {name: _id(tokenizer, token) for name, token in named.items()}
    special = {f"{name}_token_id": number for name, number in ids.items()}
    config = {**small(facts.architecture).config_json(facts.model_type), "bos_token_id": None, **special}
    own = derive_seed(seed, facts.id, "rehearsal")
    network = build_network(config, seed=own)
    let_it_write(
        network,
        known=tokenizer.get_vocab_size(),
        end=ids["eos"],
        answers=[_id(tokenizer, text) for text in ANSWERS],
        never=[_id(tokenizer, token) for token in _special(facts) if token != named["eos"]],
        seed=own,
    )
    folder.mkdir(parents=True)
    network.config.save_pretrained(folder)
    _save_weights(network.to(getattr(torch, facts.dtype)), folder, shard_bytes)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token for name, token in named.items()},
        **({"chat_template": CHAT_TEMPLATE} if facts.prompt.kind == "chat" else {}),
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(content, indent=1) + "\n")
    write_atomic(folder / REHEARSED, json.dumps({"model": facts.id, "seed": seed}) + "\n")


def _save_weights(network: Any, folder: Path, shard_bytes: int | None) -> None:
    """One file, or several and the index that says which tensor is where, as the hub has them."""
    tied = {"lm_head.weight"} if network.config.tie_word_embeddings else set()
    weights = {key: value.contiguous() for key, value in network.state_dict().items() if key not in tied}
    files: list[dict[str, Tensor]] = [{}]
    for key, value in weights.items():
        if shard_bytes and files[-1] and _bytes([*files[-1].values(), value]) > shard_bytes:
            files.append({})
        files[-1][key] = value
    index: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        whole = len(files) == 1
        name = "model.safetensors" if whole else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # other users' jobs read it
        index |= dict.fromkeys(part, name)
    if len(files) == 1:
        return
    content = {"metadata": {"total_size": _bytes(weights.values())}, "weight_map": index}
    write_atomic(folder / "model.safetensors.index.json", json.dumps(content, indent=1) + "\n")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _special(facts: ModelFacts) -> list[str]:
    form: PromptForm = facts.prompt
    turns = ["<|im_start|>", "<|im_end|>", form.end_of_turn] if form.kind == "chat" else []
    return list(dict.fromkeys([PAD, EOS, *([BOS] if form.bos else []), *(one for one in turns if one)]))


def _tokenizer(facts: ModelFacts) -> tuple[Tokenizer, dict[str, str]]:
    """The lab's tokenizer of the model's family with the special tokens that its prompts need.

    Returns:
        It, and which token is ``eos``, ``pad`` and, where the model has one, ``bos``.
    """
    tokenizer = Tokenizer.from_file(str(weights_folder(facts.id) / "tokenizer.json"))
    assert (tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)) == (PAD_ID, EOS_ID)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _special(facts)])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ANSWERS])
    named = {"eos": facts.prompt.end_of_turn or EOS, "pad": PAD}
    return tokenizer, named | ({"bos": BOS} if facts.prompt.bos else {})


def _id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


# -- weights


@torch.no_grad()
def let_it_write(
    network: Any, *, known: int, end: int, answers: Sequence[int], never: Sequence[int], seed: int
) -> None:
    """Shape a random network's embeddings so that its texts can be read and come to an end.

    All embeddings of tokens that the tokenizer has share a part, which every hidden state then has, too:
    tokens without it (rows that fill up the vocabulary) are never written, and a token with more of it is
    written more often. A second part leads from answers to the end.

    Args:
        network: a causal LM of the lab's transformers classes; changed in place.
        known: the tokenizer's number of tokens, which are the first rows.
        end: id of the token that ends a text.
        answers: ids after which it mostly comes.
        never: ids that are not written, e.g. of the padding.
    """
    draw = torch.Generator().manual_seed(seed)
    embedding = network.get_input_embeddings().weight
    head = network.get_output_embeddings().weight
    shared = torch.full((embedding.shape[1],), embedding.shape[1] ** -0.5)
    for matrix in {id(one): one for one in (embedding, head)}.values():
        matrix.normal_(std=SPREAD, generator=draw)
        matrix -= (matrix @ shared)[:, None] * shared
        matrix[:known] += SHARED * shared
        matrix[known:] -= SHARED * shared
    leading = shared * (1 - 2 * (torch.arange(len(shared)) % 2))
    embedding[list(answers)] += LEADING * leading
    head[end] += 2 * LEADING * leading
    for name, parameter in network.named_parameters():
        if "post_" in name and network.config.model_type == "gemma2":
            parameter.fill_(
                -0.9
            )  # Gemma-2's later norms would drown the embedding; their scale is 1 + weight
    for token in never:
        head[token] -= 2 * SHARED * shared
    ordinary = [token for token in range(known) if token not in (end, *answers, *never)]
    wanted = {end: RATES["end"], **dict.fromkeys(answers, RATES["answer"])}
    _set_rates(network, head, shared, ordinary, wanted, draw)


def _set_rates(
    network: Any,
    head: Tensor,
    shared: Tensor,
    ordinary: Sequence[int],
    wanted: dict[int, float],
    draw: torch.Generator,
) -> None:
    """Move rows of the head along the shared part until their tokens are as likely as wanted."""
    prompts = torch.tensor(ordinary)[torch.randint(len(ordinary), (8, 24), generator=draw)]
    states = network.model(input_ids=prompts).last_hidden_state.flatten(0, 1)
    rest = torch.logsumexp(_logits(network, states @ head[list(ordinary)].T), dim=-1)
    left = 1 - sum(wanted.values())
    for token, share in wanted.items():
        row, low, high = head[token].clone(), -4 * SHARED, 4 * SHARED
        for _ in range(40):
            middle = (low + high) / 2
            own = _logits(network, states @ (row + middle * shared))
            more = bool((own - rest).exp().mean() < share / left)
            low, high = (middle, high) if more else (low, middle)
        head[token] = row + low * shared


def _logits(network: Any, values: Tensor) -> Tensor:
    cap = getattr(network.config, "final_logit_softcapping", None)
    return values if cap is None else cap * torch.tanh(values / cap)
