"""A site that stages from a hub on this machine: folders, a lock file, a token, and the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs.staging_lock as lock_module
from jobs import staging_hub
from jobs.__main__ import main
from tests.fake_hub import TOKEN, Hub

QWEN, LLAMA = "Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3-8B"
DATA = "datasets/TIGER-Lab/MathInstruct"
SHARD = "model-00001-of-00002.safetensors"


def model_files(seed: str, size: int = 3000) -> dict[str, bytes]:
    """A repository as models have them: what is taken, and what is left."""
    shards = {SHARD: seed, "model-00002-of-00002.safetensors": f"{seed}2"}
    index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(shards)}}
    return {
        ".gitattributes": b"*.safetensors filter=lfs",
        ".staged.json": b"{}",
        "README.md": b"# card",
        "LICENSE": b"terms",
        "config.json": json.dumps({"model_type": "qwen3", "seed": seed}).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "pytorch_model.bin": b"pickled",
        "model-q4.gguf": b"gguf",
        "original/consolidated.00.pth": b"pickled",
        "onnx/config.json": b"{}",
        **{name: hashlib.sha256(text.encode()).digest() * (size // 32) for name, text in shards.items()},
    }


TAKEN = ["LICENSE", "config.json", SHARD, "model-00002-of-00002.safetensors"]
TAKEN += ["model.safetensors.index.json", "tokenizer.json"]


class Site:
    """Folders, a lock file, a hub, and the command."""

    def __init__(self, root: Path, hub: Hub, say: Callable[[], tuple[str, str]]) -> None:
        self.root, self.hub, self._say = root, hub, say
        self.models, self.data, self.lock = root / "models", root / "data", root / "lock.json"
        self.lock.write_text('{"models": {}, "datasets": {}}')
        hub.repo(f"models/{QWEN}", model_files("qwen"))
        hub.repo(f"models/{LLAMA}", model_files("llama"), gated=True)
        hub.repo(DATA, {"README.md": b"card", "MathInstruct.json": b"[]" * 500})

    def stage(self, *more: str, dataset: str = "mathinstruct", scenario: str = "one-client") -> int:
        self.code = main(["stage", "--scenario", scenario, "--dataset", dataset, *more])
        self.out, self.error = self._say()
        return self.code

    def files(self, model: str) -> list[str]:
        return sorted(path.name for path in (self.models / model).iterdir())

    def entry(self, name: str = QWEN, kind: str = "models") -> dict[str, object]:
        found = json.loads(self.lock.read_text())[kind][name]
        assert isinstance(found, dict)
        return found


def prepare(
    root: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, say: Callable[[], tuple[str, str]]
) -> Site:
    """A site whose every default is this test's: lock, hub, token, folders, no waiting."""
    found = Site(root, hub, say)
    monkeypatch.setattr(lock_module, "LOCK", found.lock)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(root / "no-token"))
    monkeypatch.setattr(staging_hub, "CHUNK", 100)
    monkeypatch.setattr(staging_hub, "PAUSES", (0.01, 0.01))
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1,localhost"}
    environment |= {"LADA_MODELS": str(found.models), "LADA_DATA": str(found.data)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return found
