"""Modules of these tests on several ranks, and numbers that are equal but for their last bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


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
