"""The GPUs that a stage's job asked for: whether torch sees them. `python -m lada.gpus` tries one.

Without this, a stage whose container sees no GPU (no ``--nv``, a driver older than the image's CUDA, a job
that was granted none) would compute on the CPU for days and say nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lada.errors import ConfigError, DeviceError, exit_code
from lada.ranks import Ranks

ASKED = "LADA_GPUS"
"""Environment variable: GPUs that the host asked for on this node; not set where it asked for none."""
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""Release of CUDA -> the oldest driver that runs it (NVIDIA, CUDA Compatibility, table of minor versions)."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")
SIZE = 512
"""Rows of the matrices that are multiplied to try a GPU."""


def check_gpus(who: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to go on with fewer GPUs than the host asked for; nothing where it asked for none.

    Args:
        who: computes, e.g. the party's name.

    Raises:
        DeviceError: saying what was asked for, what torch sees and why, and what to do.
        ConfigError: the variable holds no number.
    """
    text = environment.get(ASKED) or "0"
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{ASKED}='{text}' in the environment is no number of GPUs")
    asked, there = int(text), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < asked:
        raise DeviceError(
            f"{who}: the cluster file asks for gpus: {asked} on a node, and torch sees {there} on "
            f"{os.uname().nodename} ({_facts()}). {_mend(there)}; `make doctor` tries one in the image"
        )


def default_device() -> str:
    """The GPU of this process, where there is one; torchrun counts a node's processes in LOCAL_RANK."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def stage_device(tier: str, ranks: Ranks) -> torch.device:
    """Where this process computes a stage: a lab model that one rank holds, on the CPU."""
    if ranks.size > 1:
        return ranks.device
    return torch.device("cpu" if tier == "lab" else default_device())


def driver_version() -> str | None:
    """Version of the NVIDIA driver, as the kernel or else nvidia-smi tells it; None where neither does."""
    if DRIVER_FILE.is_file():
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
        if found:
            return found[1]
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    line = next(iter(done.stdout.splitlines()), "").strip()
    return line if done.returncode == 0 and re.fullmatch(r"\d+(\.\d+)+", line) else None


def oldest_driver() -> int | None:
    """The oldest driver that runs the CUDA of this torch; None for a CPU build or an unknown release."""
    release = str(torch.version.cuda or "").partition(".")[0]
    return OLDEST_DRIVERS.get(int(release)) if release.isdigit() else None


def _facts() -> str:
    driver = driver_version()
    found = [f"torch {torch.__version__}", f"its CUDA {torch.version.cuda or 'none, a CPU build'}"]
    if oldest_driver() is not None:
        found.append(f"which needs a driver of {oldest_driver()} or newer")
    found += [f"driver {driver}" if driver else "no driver to be seen", f"torch says: {_complaint()}"]
    return ", ".join(found)


def _complaint() -> str:
    """Why torch has no CUDA, in its own words; `torch.cuda.is_available` keeps them to itself."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # an assertion in a CPU build
        return next(iter(str(error).splitlines()), type(error).__name__)
    return "nothing"


def _mend(there: int) -> str:
    """What to do, by what is known."""
    driver, oldest = driver_version(), oldest_driver()
    if torch.version.cuda is None:
        return "Build the image with torch's CUDA build (definition: containers/lada.def, make image)"
    if driver is not None and oldest is not None and int(driver.partition(".")[0]) < oldest:
        return f"Ask for a driver of {oldest} or newer, or build the image for an older one (README, step 2)"
    if driver is None:
        return "The container gets no driver: nvidia: true in the cluster file (apptainer --nv), on GPU nodes"
    if there == 0:
        return "Slurm may have granted none: gpu_option, gpu_type and partition in the cluster file"
    return "Slurm granted fewer: gpus, gpu_option and gpu_type in the cluster file"


# -- for the doctor


def tried() -> Iterator[dict[str, Any]]:
    """What is known of this process's GPU, more of it each time; what breaks, breaks after what was known.

    Raises:
        DeviceError: torch sees fewer GPUs than `ASKED`, or none.
        RuntimeError: the GPU does not compute.
    """
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "oldest_driver": oldest_driver(),
    }
    yield found
    check_gpus("a node's job", {ASKED: "1", **os.environ})
    found |= {"gpus": torch.cuda.device_count(), "name": torch.cuda.get_device_name()}
    yield found
    found["error"] = product_error("cuda")
    yield found
    from lada.zero import deepspeed_version

    found["deepspeed"] = deepspeed_version()
    yield found


def product_error(device: str) -> float:
    """Relative error of a bfloat16 product on a device, against the CPU's in float64."""
    assert torch.ones(1, device=device).item() == 1.0
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator).bfloat16() for _ in range(2))
    exact = a.double() @ b.double()
    found = (a.to(device) @ b.to(device)).double().cpu()
    return float((found - exact).norm() / exact.norm())


def main() -> int:
    """Print what is known as JSON, one line a step; the last one is complete where all is well."""
    for found in tried():
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
