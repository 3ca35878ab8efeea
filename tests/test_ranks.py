"""Two and three ranks compute what one does: under torchrun, with and without DeepSpeed, LoRA and full."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lada.language_model import State
from lada.models import build_network
from lada.plan import read_plan
from lada.rundir import RunDir, Stage
from lada.torchrun import exit_code
from tests.federation import commit, drive, make
from tests.pauses import content, without
from tests.rank_work import TRAINING, case, everything, open_case
from tests.smallest_models import SETTINGS
from tests.tiny_models import tiny_config, tiny_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TWO = (
    *("qwen3-lora-z0", "llama-full-z1", "gemma2-lora-z2", "qwen3-lora-z3", "llama-full-z3"),
    *("qwen3-again-z3", "gemma2-again-z2", "qwen3-mixed-z3", "llama-half-z2"),
)
THREE = ("llama-full-z0", "qwen3-lora-z1", "gemma2-full-z2", "gemma2-full-z3", "qwen3-drop-z3")
CLIENT = Stage(1, "learn", "client-1")
SMALL_STEPS = ("training.client.batch_size=2", "training.client.epochs=3", "training.client.micro_tokens=300")


def command(ranks: int, *module: str) -> list[str]:
    """A module on several ranks."""
    start = [sys.executable, "-m", "lada.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    return [*start, "-m", *module]


def environment() -> dict[str, str]:
    steady = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **steady, "LADA_RESUME_MIN_SECONDS": "0", "PYTHONUNBUFFERED": "1"}


def torchrun(ranks: int, *module: str, code: int = 0) -> str:
    """Run a module on several ranks to its end; returns its output."""
    done = subprocess.run(
        command(ranks, *module),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def started(ranks: int, *module: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
    """A module at work on several ranks."""
    return subprocess.Popen(
        command(ranks, *module),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


# -- what is computed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models as folders; Llama's with a head of its own."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("qwen3", "llama", "gemma2")):
        config = tiny_config(name, tie_word_embeddings=name != "llama")
        weights = {key: one.clone() for key, one in build_network(config, seed=seed).state_dict().items()}
        if config["tie_word_embeddings"]:
            del weights["lm_head.weight"]
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        tiny_tokenizer().save(str(folder / name / "tokenizer.json"))
        save_file(weights, folder / name / "model.safetensors")
    return folder


Computed = tuple[dict[str, Any], State]


@pytest.fixture(scope="module")
def alone(models: Path) -> Callable[[str], Computed]:
    """What one rank computes in a case."""
    known: dict[str, Computed] = {}

    def find(name: str) -> Computed:
        key = name.rpartition("-")[0]
        if key not in known:
            known[key] = everything(open_case(case(name), models))
        return known[key]

    return find


@pytest.fixture(scope="module")
def several(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, tuple[str, ...]], Path]:
    """Folder with what so many ranks computed, all cases in one go."""
    known: dict[int, Path] = {}

    def find(ranks: int, names: tuple[str, ...]) -> Path:
        if ranks not in known:
            known[ranks] = tmp_path_factory.mktemp(f"ranks-{ranks}")
            torchrun(ranks, "tests.rank_work", str(models), str(known[ranks]), *names)
        return known[ranks]

    return find


@pytest.mark.parametrize(("ranks", "name"), [*((2, one) for one in TWO), *((3, one) for one in THREE)])
def test_ranks_compute_what_one_does(ranks: int, name: str, alone: Any, several: Any) -> None:
    out = several(ranks, TWO if ranks == 2 else THREE)
    seen, state = json.loads((out / f"{name}.json").read_text()), load_file(out / f"{name}.safetensors")
    share, widest = seen.pop("share"), seen.pop("widest")
    if name.endswith("z3"):
        assert widest <= TRAINING.micro_tokens, "padding counts where a micro-batch is one pass"
    expected, trained = alone(name)
    assert (share < 0.6) == name.endswith("z3"), "a rank holds about its share of the weights"
    assert {value.dtype for value in state.values()} == {value.dtype for value in trained.values()}
    if "drop" in name or name.endswith("half-z2") or "mixed" in name:
        # Every rank drops by random numbers of its own; in bfloat16 steps are equal in a few digits alone.
        seen, expected = ({key: one[key] for key in ("before", "reference")} for one in (seen, expected))
    else:
        assert state.keys() == trained.keys()
        for key, value in trained.items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=3e-5, msg=key)
    assert all(value.abs().max() > 0 for value in state.values())
    close(seen, json.loads(json.dumps({key: expected[key] for key in seen})))


def test_one_rank_has_nothing_to_do_with_deepspeed(alone: Any) -> None:
    alone("qwen3-lora-z0")
    assert "deepspeed" not in sys.modules


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


def test_training_in_bfloat16_goes_on_where_it_paused(models: Path, tmp_path: Path) -> None:
    names = ("llama-half-z1", "llama-half-z2", "llama-half-z3")
    torchrun(2, "tests.rank_pauses", str(models), str(tmp_path), *names)
    for name in names:
        undisturbed, again, pauses = json.loads((tmp_path / f"{name}.json").read_text())
        assert again == undisturbed, name
        assert pauses == 2


# -- whole stages


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


# -- failures


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("memory", 10, "DeviceMemoryError: rank 1: the GPU's memory ran out"),
        ("killed", 137, "rank 1 was ended by SIGKILL"),
        ("mistake", 2, "ConfigError: something is wrong"),
        ("paused", 85, "Paused: a stage was warned"),
    ],
)
def test_all_ranks_end_with_what_the_first_one_said(fault: str, code: int, said: str) -> None:
    output = torchrun(2, "tests.rank_faults", fault, code=code)
    assert said in output.strip().splitlines()[-1]


def test_a_warning_to_what_starts_the_ranks_reaches_them() -> None:
    with started(2, "tests.rank_faults", "warned", stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 120)[0]
        assert process.stdout.readline() == "listening\n"
        process.send_signal(signal.SIGUSR2)
        assert process.wait(60) == 85


@pytest.mark.parametrize(
    ("codes", "found"), [([16, 10], 10), ([1, -15], 1), ([-9, -15], 137), ([16, 1], 16), ([85], 85)]
)
def test_the_exit_code_is_the_one_that_says_most(codes: list[int], found: int) -> None:
    assert exit_code(codes) == found
