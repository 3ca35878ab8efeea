"""Two ranks compute what one does: under torchrun, with and without DeepSpeed, LoRA and full."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lada.language_model import State
from lada.torchrun import exit_code
from tests.rank_work import TRAINING, case, everything, open_case, write_models
from tests.torchruns import close, started, torchrun

pytestmark = pytest.mark.slow

TWO = (
    *("qwen3-lora-z0", "llama-full-z1", "gemma2-lora-z2", "qwen3-lora-z3", "llama-full-z3"),
    *("qwen3-again-z3", "gemma2-again-z2", "qwen3-mixed-z3", "llama-half-z2"),
)


# -- what is computed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


Computed = tuple[dict[str, Any], State]


def check_ranks(ranks: int, names: tuple[str, ...], models: Path, out: Path) -> None:
    """So many ranks compute in each case what one does here."""
    torchrun(ranks, "tests.rank_work", str(models), str(out), *names)
    known: dict[str, Computed] = {}
    for name in names:
        key = name.rpartition("-")[0]
        if key not in known:
            known[key] = everything(open_case(case(name), models))
        check_case(name, out, known[key])


def check_case(name: str, out: Path, alone: Computed) -> None:
    """What several ranks left behind in a case against what one computed."""
    seen, state = json.loads((out / f"{name}.json").read_text()), load_file(out / f"{name}.safetensors")
    share, widest = seen.pop("share"), seen.pop("widest")
    if name.endswith("z3"):
        assert widest <= TRAINING.micro_tokens, f"{name}: padding counts where a micro-batch is one pass"
    expected, trained = alone
    assert (share < 0.6) == name.endswith("z3"), f"{name}: a rank holds about its share of the weights"
    assert {value.dtype for value in state.values()} == {value.dtype for value in trained.values()}, name
    if "drop" in name or name.endswith("half-z2") or "mixed" in name:
        # Every rank drops by random numbers of its own; in bfloat16 steps are equal in a few digits alone.
        seen, expected = ({key: one[key] for key in ("before", "reference")} for one in (seen, expected))
    else:
        assert state.keys() == trained.keys(), name
        for key, value in trained.items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=3e-5, msg=f"{name}: {key}")
    assert all(value.abs().max() > 0 for value in state.values()), name
    close(seen, json.loads(json.dumps({key: expected[key] for key in seen})), name)


def test_two_ranks_compute_what_one_does(models: Path, tmp_path: Path) -> None:
    check_ranks(2, TWO, models, tmp_path)


def test_one_rank_has_nothing_to_do_with_deepspeed(models: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.rank_work import TRAINING, case, everything, open_case, write_models
everything(open_case(case("qwen3-lora-z0"), Path({str(models)!r})))
assert "deepspeed" not in sys.modules
"""
    # In a process of its own: other tests of this one may have imported DeepSpeed.
    subprocess.run([sys.executable, "-c", script], check=True)


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
