"""Two and three ranks compute what one does: under torchrun, with and without DeepSpeed, LoRA and full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lada.models import State, build_network
from tests.rank_work import case, everything, open_case
from tests.tiny_models import tiny_config, tiny_tokenizer

ROOT = Path(__file__).parents[1]
TWO = ("qwen3-lora-z0", "llama-full-z0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models as folders; one with a head of its own."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("qwen3", "llama", "gemma2")):
        config = tiny_config(name, tie_word_embeddings=name != "llama")
        weights = build_network(config, seed=seed).state_dict()
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        tiny_tokenizer().save(str(folder / name / "tokenizer.json"))
        kept = {key: value.clone() for key, value in weights.items()}
        if config["tie_word_embeddings"]:
            del kept["lm_head.weight"]
        save_file(kept, folder / name / "model.safetensors")
    return folder


def torchrun(ranks: int, *command: str, environment: Mapping[str, str] = os.environ) -> str:
    """Run a module on several ranks; returns its output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*launcher, *command],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def alone(models: Path) -> Any:
    """What one rank computes, by architecture and training."""
    known: dict[str, tuple[dict[str, Any], State]] = {}

    def find(name: str) -> tuple[dict[str, Any], State]:
        key = name.rpartition("-")[0]
        if key not in known:
            known[key] = everything(open_case(case(name), models))
        return known[key]

    return find


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    torchrun(2, "-m", "tests.rank_work", str(models), str(out), *TWO)
    return out


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_compute_what_one_does(name: str, alone: Any, two: Path) -> None:
    compare(json.loads((two / f"{name}.json").read_text()), load_file(two / f"{name}.safetensors"), *alone(name))


def compare(seen: Any, state: State, expected: Any, trained: State) -> None:
    close(seen, json.loads(json.dumps(expected)))
    assert state.keys() == trained.keys()
    for key, value in trained.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=2e-5, msg=key)
        assert value.abs().max() > 0, key


def close(seen: Any, expected: Any, where: str = "") -> None:
    """Equal but for numbers' last bits."""
    assert type(seen) is type(expected), where
    if isinstance(expected, dict):
        assert seen.keys() == expected.keys(), where
        for key, value in expected.items():
            close(seen[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(seen) == len(expected), where
        for place, (one, other) in enumerate(zip(seen, expected, strict=True)):
            close(one, other, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert seen == pytest.approx(expected, rel=2e-4, abs=2e-4), where
    else:
        assert seen == expected, where
