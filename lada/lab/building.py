"""Makes one lab model: tokenizer, pre-training, measurement, and its folder of four files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from lada.lab.curriculum import Curriculum
from lada.lab.measuring import SEED, measure
from lada.lab.pretraining import Trainer
from lada.lab.recipes import RECIPES
from lada.lab.tokenizing import train_tokenizer
from lada.loading import load_model
from lada.models import build_network

FILES = ("config.json", "tokenizer.json", "model.safetensors")


def build(model: str, folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Pre-train a model from scratch and write its folder, the manifest last.

    Args:
        model: short name, a key of `RECIPES`.
        folder: where the files go; made when missing.
        report: called with figures while it learns.
    """
    recipe = RECIPES[model]
    tokenizer = train_tokenizer(recipe.family)
    config = recipe.config(tokenizer.get_vocab_size())
    network = build_network(config, seed=recipe.seed)
    curriculum = Curriculum(recipe.mixture(model), recipe.seed)
    trainer = Trainer(network, tokenizer, curriculum=curriculum, schedule=recipe.schedule, report=report)
    training = {"main": trainer.run()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    _finish(model, folder, network, training, report)


def refresh(model: str, folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Give a model that is already in its folder its last lesson, or another one."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    _finish(model, folder, load_model(folder).network, manifest["training"], report)


def _finish(
    model: str, folder: Path, network: Any, training: dict[str, Any], report: Callable[[dict[str, Any]], None]
) -> None:
    """The last lesson where the recipe has one, then the weights and the manifest."""
    recipe = RECIPES[model]
    if recipe.refresh:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        seed = recipe.seed + 1000
        trainer = Trainer(
            network,
            tokenizer,
            curriculum=Curriculum(recipe.mixture(model, refresh=True), seed),
            schedule=dataclasses.replace(recipe.schedule, steps=recipe.refresh, lookup_steps=0),
            report=report,
        )
        training[f"refresh{len(training)}"] = trainer.run()
    # Choice: float16 keeps three more bits than bfloat16 and all weights are far below its largest number.
    halves = {
        name: value.to(torch.float16).contiguous()
        for name, value in network.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    write_manifest(model, folder, training)


def write_manifest(model: str, folder: Path, training: dict[str, Any]) -> None:
    """Measure the model as it lies in its folder and write manifest.json."""
    recipe = RECIPES[model]
    opened = load_model(folder)
    parameters = sum(parameter.numel() for parameter in opened.network.parameters())
    manifest = {
        "model": model,
        "architecture": type(opened.network).__name__,
        "parameters": parameters,
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "tokenizer": {"family": recipe.family, "size": opened.tokenizer.get_vocab_size()},
        "seed": recipe.seed,
        "strong": list(recipe.strong),
        "batch": recipe.schedule.batch,
        "training": training,
        "sha256": {name: sha256(folder / name) for name in FILES},
        "bytes": {name: (folder / name).stat().st_size for name in FILES},
        "measured_seed": SEED,
        "measured": measure(model, opened, writes=recipe.write > 0),
    }
    _write_json(folder / "manifest.json", manifest)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
