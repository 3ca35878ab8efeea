"""Whole stages and federations by two and three ranks: what one rank does, and warned again and again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lada.plan import read_plan
from lada.rundir import RunDir, Stage
from tests.federation import commit, drive, make
from tests.pauses import content, without
from tests.smallest_models import SETTINGS
from tests.torchruns import ROOT, close, environment, started, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stages-of-ranks")]

CLIENT = Stage(1, "learn", "client-1")
SMALL_STEPS = ("training.client.batch_size=2", "training.client.epochs=3", "training.client.micro_tokens=300")


@pytest.fixture(scope="module")
def lada(tiny_run: Callable[..., RunDir]) -> RunDir:
    return tiny_run("ranks", "rounds=1", "lora.rank=4", *SMALL_STEPS)


@pytest.fixture(scope="module")
def shared(lada: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run, driven by two ranks that share the weights."""
    run = copy(lada, tmp_path_factory.mktemp("shared"))
    torchrun(2, "tests.rank_run", str(run.root), "3")
    return run


@pytest.fixture(scope="module")
def driven(lada: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run, driven by one."""
    return drive(copy(lada, tmp_path_factory.mktemp("driven")))


def copy(run: RunDir, folder: Path) -> RunDir:
    found = RunDir(folder / run.root.name)
    shutil.copytree(run.root, found.root)
    return found


def same_work(run: RunDir, other: RunDir) -> None:
    """Texts, letters and selections are the same, weights and rewards but for their last bits."""
    for group in read_plan(run).groups():
        for stage in group:
            for path in run.commit(stage).rglob("*"):
                there = other.commit(stage) / path.relative_to(run.commit(stage))
                if path.name in ("responses.jsonl", "own_responses.jsonl", "predictions.jsonl", "ids.jsonl"):
                    assert path.read_bytes() == there.read_bytes(), path
                elif path.name in ("rewards.jsonl", "samples.jsonl"):
                    ours, theirs = (
                        list(map(json.loads, one.read_text().splitlines())) for one in (path, there)
                    )
                    close(theirs, ours, path.name)
                elif path.name in ("model.safetensors", "adapter.safetensors"):
                    ours, theirs = load_file(path), load_file(there)
                    assert ours.keys() == theirs.keys()
                    for key, value in ours.items():
                        torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=3e-5, msg=key)


def test_a_federation_of_two_ranks_a_party_does_what_one_does(driven: RunDir, shared: RunDir) -> None:
    same_work(driven, shared)
    adapter = load_file(commit(shared, 1, "learn", "client-1") / "public/server/adapter.safetensors")
    assert all(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)


@pytest.mark.usefixtures("smallest_lab")
def test_three_ranks_train_all_weights_by_a_supervised_method(tmp_path: Path) -> None:
    run = make(tmp_path, *SETTINGS, "rounds=1", *SMALL_STEPS, method="sft", small=False)
    other = copy(run, tmp_path / "other")
    torchrun(3, "tests.rank_run", str(other.root), "2")
    same_work(drive(run), other)


@pytest.mark.parametrize(("ranks", "zero"), [(2, 3), (2, 2)])
def test_warned_again_and_again_the_same_ranks_commit_the_same_bytes(
    ranks: int, zero: int, shared: RunDir, tmp_path: Path
) -> None:
    run, undisturbed = without(shared, tmp_path / "warned", CLIENT), shared
    if zero != 3:
        undisturbed = without(shared, tmp_path / "undisturbed", CLIENT)
        torchrun(ranks, "tests.rank_run", str(undisturbed.root), str(zero))
    output = torchrun(ranks, "tests.rank_run", str(run.root), str(zero), "11")
    assert content(run, CLIENT) == content(undisturbed, CLIENT)
    for phase in ("fit", "generate"):
        assert f"({phase}) goes on where an earlier attempt paused" in output


def test_a_point_of_other_ranks_is_not_used(shared: RunDir, tmp_path: Path) -> None:
    run = without(shared, tmp_path, CLIENT)
    step = ("--run", str(run.root), "--party", "client-1", "--stage", "r01-learn", "--zero", "2")
    with started(2, "lada", "step", *step, "--attempt", "01-x") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "resume point of phase 2" in line:
                process.send_signal(signal.SIGUSR2)
    assert process.returncode == 85, "".join(lines)
    assert "begins, 2 ranks, ZeRO stage 2" in "".join(lines)
    assert any(run.resume(CLIENT).iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "lada", "step", *step, "--attempt", "02-x"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is of another request: ignored" in done.stdout
    assert "attempt 02-x begins\n" in done.stdout, "one rank says nothing of ranks"
