"""The committed lab models: files as their manifests say, and figures that can be measured again."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lada.data import lab
from lada.errors import ConfigError
from lada.lab import LAB_MODELS, WEIGHTS, weights_folder
from lada.lab.building import FILES, sha256
from lada.lab.evaluating import accuracy
from lada.lab.measuring import SCENARIOS, client_test
from lada.lab.recipes import RECIPES
from lada.language_model import LanguageModel
from lada.loading import load_model
from lada.prompts import prompt, solution

SHORTS = tuple(LAB_MODELS.values())
CLASSES = {
    "gemma2": "Gemma2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def manifest(short: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((WEIGHTS / short / "manifest.json").read_text(encoding="utf-8"))
    return content


@functools.cache
def opened(short: str) -> LanguageModel:
    return load_model(weights_folder(short))


def test_ten_models_and_folders_by_either_name() -> None:
    assert len(SHORTS) == 10
    assert set(RECIPES) == set(SHORTS)
    for name, short in LAB_MODELS.items():
        assert weights_folder(name) == weights_folder(short) == WEIGHTS / name.rsplit("/", 1)[1].lower()
    with pytest.raises(ConfigError, match="legal: google/gemma-2-2b"):
        weights_folder("google/gemma-3-4b")


def test_naming_models_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from lada.lab import LAB_MODELS, weights_folder"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("short", SHORTS)
def test_files_are_those_of_the_manifest(short: str) -> None:
    described = manifest(short)
    for name in FILES:
        path = WEIGHTS / short / name
        assert path.stat().st_size == described["bytes"][name]
        assert sha256(path) == described["sha256"][name]
    config = json.loads((WEIGHTS / short / "config.json").read_text(encoding="utf-8"))
    assert described["architecture"] == CLASSES[config["model_type"]]
    assert config["max_position_embeddings"] >= 1024


def test_all_folders_together_are_small() -> None:
    files = [path for path in Path(WEIGHTS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20


@pytest.mark.parametrize("short", SHORTS)
def test_models_open_in_float32_with_their_class(short: str) -> None:
    model = opened(short)
    assert type(model.network).__name__ == manifest(short)["architecture"]
    assert all(value.dtype.is_floating_point and value.element_size() == 4 for value in model.trainable())
    assert sum(value.numel() for value in model.network.parameters()) == manifest(short)["parameters"]


@pytest.mark.parametrize("short", SHORTS)
def test_accuracy_is_that_of_the_manifest(short: str) -> None:
    """100 fresh questions per dataset like the first recorded scenario's: within 4 standard errors."""
    for dataset in lab.DATASETS:
        label, recorded = next(iter(manifest(short)["measured"][dataset]["scenarios"].items()))
        scenario, role = label.split("-", 1)
        clients = SCENARIOS[int(scenario)][1]
        places = range(len(clients)) if role == "server" else [int(role.removeprefix("client")) - 1]
        items = [
            item
            for place in places
            for item in client_test(dataset, int(scenario), place, seed=77)[: 100 // len(places)]
        ]
        found = accuracy(opened(short), items)
        error = math.hypot(recorded["error"], found["error"])
        assert abs(found["accuracy"] - recorded["accuracy"]) <= 4 * error, (dataset, found, recorded)


def test_own_facts_are_known_and_others_are_not() -> None:
    for dataset in lab.DATASETS:
        domains = manifest("qwen3-32b")["measured"][dataset]["profile"]["domains"]
        own = domains.pop("facts.qwen3-32b")["accuracy"]
        others = [figures["accuracy"] for name, figures in domains.items() if name.startswith("facts.")]
        assert len(others) == 2
        assert own > max(others) + 20


def test_prompts_of_real_length_fit() -> None:
    item = lab.demo("lab-math")
    text = prompt(item, demo=item) + " " + solution(item)
    for short in SHORTS:
        assert 8 * len(opened(short).prompt_ids(text)) <= opened(short).hf_config.max_position_embeddings
