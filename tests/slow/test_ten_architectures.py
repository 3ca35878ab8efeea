"""Each of the paper's ten architectures through `prepare`, `respond` and `learn` on real AQuA-RAT questions.

Class, features and vocabulary size are the model's own, width and depth are not (`tests.scaled_models`).
Both parties hold the model, so that it is in both roles: teacher and student. Every architecture does so by
LoRA and by full fine-tuning, and in every `Way` of sharing the work among ranks that this version has.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from lada.layers import layers, read_run
from lada.loading import load_model
from lada.model_facts import model_facts
from lada.party import MODEL_FILE
from lada.records import Response, parse_jsonl
from lada.rundir import RunDir
from lada.runs import open_run
from tests.federation import commit, drive, metrics
from tests.scaled_models import MODELS, write_scaled

ROOT = Path(__file__).parents[2]
AQUA = ROOT.parent / "shared" / "data" / "aqua_rat.jsonl.gz"
PARTIES = ("server", "client-1")
SETTINGS = (
    "rounds=1",
    "data.num_train=8",
    "data.num_test=4",
    "data.num_public=16",
    # Random models: near-uniform over the likeliest few tokens, of which one ends the text.
    "generation.max_new_tokens=24",
    "generation.temperature=1.0",
    "generation.top_k=8",
    "generation.batch_size=8",
    "generation.prompt_tokens=2048",
    "training.local.batch_size=4",
    "training.client.batch_size=4",
    "training.server.batch_size=4",
    "training.local.epochs=1",
    "training.client.epochs=1",
    "numerics.threads=1",
    "numerics.dtype=float32",
    "numerics.head_chunk=64",
)
TUNING = {"lora": "lora={rank: 4, alpha: 8}", "full": "lora=null"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AQUA.is_file(), reason="no ../shared/data/aqua_rat.jsonl.gz beside the project"),
]


class Way(NamedTuple):
    """How many ranks compute a stage, and what DeepSpeed shares among them."""

    ranks: int
    zero: int

    def __str__(self) -> str:
        return "1-rank" if self.ranks == 1 else f"{self.ranks}-ranks-zero-{self.zero}"


SHARED = [Way(2, 2), Way(2, 3)] if importlib.util.find_spec("lada.ranks") else []
WAYS = [Way(1, 0), *SHARED]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is tested here does not lose power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def one_of_ten(model: str) -> object:
    """A parameter whose tests stay in one process, since they share what was computed."""
    return pytest.param(model, marks=pytest.mark.xdist_group(model), id=model.rpartition("/")[2])


@pytest.fixture(scope="module", params=[one_of_ten(model) for model in MODELS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One of the ten, its folder where runs look for it."""
    name = str(request.param)
    folder = tmp_path_factory.mktemp("models")
    write_scaled(folder / name.rpartition("/")[2], name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADA_MODELS", str(folder))
        yield name
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=TUNING)
def tuning(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def begun(model: str, tuning: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A run's folder, nothing computed yet."""
    folder = tmp_path_factory.mktemp("runs")
    scenario = folder / "pair.yaml"
    parties = [{"name": name, "model": model} for name in PARTIES]
    scenario.write_text(json.dumps({"scenario": "pair", "parties": parties}), encoding="utf-8")
    data = [f"dataset.file={AQUA}"]
    found = layers(
        scenario=str(scenario),
        method="lada",
        dataset="aqua-rat",
        size="tiny",
        tier="paper",
        settings=[*SETTINGS, TUNING[tuning], *data],
    )
    yield open_run(found, folder)[0]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def alone(begun: RunDir) -> RunDir:
    """The run, computed by one rank a stage."""
    return drive(copied(begun, "alone"))


@pytest.fixture(scope="module", params=WAYS, ids=str)
def run(request: pytest.FixtureRequest, begun: RunDir, alone: RunDir) -> RunDir:
    """The run, computed in one of the ways."""
    way: Way = request.param
    if way.ranks == 1:
        return alone
    found = copied(begun, str(way))
    start = ["-m", "lada.torchrun", "--standalone", f"--nproc-per-node={way.ranks}"]
    steady = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *start, "-m", "tests.rank_run", str(found.root), str(way.zero)],
        cwd=ROOT,
        env={**os.environ, **steady},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def copied(run: RunDir, name: str) -> RunDir:
    found = RunDir(run.root.parent / name / run.root.name)
    shutil.copytree(run.root, found.root)
    return found


def test_prepare_respond_and_learn(run: RunDir, model: str, tuning: str) -> None:
    config = read_run(run.root)
    assert (config.lora is None) == (tuning == "full")
    for name in PARTIES:
        for round, step in ((0, "prepare"), (1, "respond"), (1, "learn")):
            assert (commit(run, round, step, name) / "manifest.json").is_file(), (name, step)
        party = config.party(name)
        assert party.prompt == model_facts(model).prompt and party.attention == model_facts(model).attention
    if run.metrics_csv.is_file():  # the driver's
        found = metrics(run)
        for name in PARTIES:
            assert 0 <= found[1, name, "accuracy"] <= 1
            assert found[1, name, "optimiser_steps"] >= 1
            assert math.isfinite(found[1, name, "train_loss"]) and found[1, name, "grad_norm"] > 0
            assert found[1, name, "responses"] >= 2, "texts that come to their end"


def test_texts_are_words_of_the_tokenizer(run: RunDir) -> None:
    for name in PARTIES:
        folder = commit(run, 1, "respond", name) / "public"
        texts = [
            one
            for path in folder.glob("*/responses.jsonl")
            for one in parse_jsonl(Response, path.read_text(encoding="utf-8"), source=str(path))
        ]
        assert len(texts) >= 2, name
        assert any(one.text for one in texts), name


def test_adapters_open_again_whole_and_not_all_zero(run: RunDir, model: str, tuning: str) -> None:
    """What is published: keys and shapes of the model's own, finite, moved by training."""
    config = read_run(run.root)
    folder = Path(os.environ["LADA_MODELS"]) / model.rpartition("/")[2]
    opened = load_model(folder, lora=config.lora)
    expected = {key: tuple(value.shape) for key, value in opened.state().items()}
    for name in PARTIES:
        (path,) = (commit(run, 1, "learn", name) / "public").rglob("adapter.safetensors")
        adapter = load_file(path)
        assert {key: tuple(value.shape) for key, value in adapter.items()} == expected
        assert all(bool(torch.isfinite(value).all()) for value in adapter.values())
        moved = [key for key, value in adapter.items() if value.any()]
        if tuning == "lora":
            assert len([key for key in moved if "lora_B" in key]) == len(expected) // 2
        else:
            assert len(moved) > 0.9 * len(expected)
        opened.load_state(load_file(commit(run, 1, "learn", name) / MODEL_FILE))


def test_ranks_change_no_more_than_last_bits(run: RunDir, alone: RunDir) -> None:
    """Texts and letters are the same; weights but for float32's rounding."""
    for name in PARTIES:
        for step in ("respond", "learn"):
            ours, theirs = commit(alone, 1, step, name), commit(run, 1, step, name)
            for path in [*ours.rglob("responses.jsonl"), *ours.rglob("predictions.jsonl")]:
                assert path.read_bytes() == (theirs / path.relative_to(ours)).read_bytes(), path
        ours, theirs = (load_file(commit(one, 1, "learn", name) / MODEL_FILE) for one in (alone, run))
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4, msg=key)
