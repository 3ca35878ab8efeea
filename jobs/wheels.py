"""Wheels for an image, fetched on the host, so that the build itself needs no network for Python packages.

pip does the fetching: its settings hold (mirrors, certificates, folders of wheels). What is fetched fits the
image's Python, whatever Python this is.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lada.errors import ConfigError
from lada.rundir import sha256

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SOURCE_ONLY = ("deepspeed",)
"""Packages that the index has no wheel of; theirs is built here and fits every platform."""
NEWEST_GLIBC = 36
"""Wheels for glibc 2.36 (Debian 12) or older; the bases have at least that."""

Report = Callable[[str], None]


def fill(lock: Path, wheelhouses: Path, *, python: str, torch: str, report: Report) -> Path:
    """A folder with a wheel of every locked package, of what the locked torch needs beside them, and of pip.

    Args:
        lock: requirements with exact versions.
        wheelhouses: where the folder is made, under a name that stands for its contents; kept if it is there.
        python: version of the image's Python, e.g. ``3.11``.
        torch: ``cpu`` or ``cuda``: which build. The variable TORCH_INDEX names an index that has it.

    Raises:
        ConfigError: when pip cannot get a package; with pip's own words.
    """
    index = os.environ.get("TORCH_INDEX", "")
    inputs = f"{sha256(lock.read_bytes())} {python} {torch} {index} {platform.machine()}"
    folder = wheelhouses / sha256(inputs.encode())[:12]
    if folder.is_dir():
        return folder
    lines = lock.read_text(encoding="utf-8").split()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    report(f"wheels: fetching {len(lines)} packages for Python {python}, torch's {torch} build")
    try:
        _fetch(lines, temporary, python=python, torch=torch, index=index)
        _check(temporary, torch)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report(f"wheels: {folder} holds {size(folder) / 1e6:,.0f} MB")
    return folder


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _fetch(lines: Sequence[str], folder: Path, *, python: str, torch: str, index: str) -> None:
    source = [line for line in lines if line.partition("==")[0] in SOURCE_ONLY]
    _pip("wheel", "--wheel-dir", str(folder), "--no-deps", "--use-pep517", *source)
    rest = [line for line in lines if line not in source]
    extra = ["--extra-index-url", index] if index else []
    if torch == "cuda":
        _download(folder, python, [*rest, *extra])
        return
    rest = [f"{line}+cpu" if line.startswith("torch==") else line for line in rest]
    try:
        _download(folder, python, [*rest, *extra])
    except ConfigError:
        if index:
            raise
        _download(folder, python, [*rest, "--extra-index-url", CPU_INDEX])


def _download(folder: Path, python: str, requirements: Sequence[str]) -> None:
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, 4, -1)]
    tags += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    fitting = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    fitting += [f"--platform={tag}" for tag in tags]
    _pip("download", "--dest", str(folder), *fitting, "pip", *requirements)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.lstrip().lower().startswith("error")]
        said = "\n".join(errors or done.stderr.splitlines()[-3:])
        raise ConfigError(
            f"`pip {arguments[0]}` failed. Where another index has the packages, tell pip:\n{said}"
        )


def _check(folder: Path, torch: str) -> None:
    built = [
        path.name for name in SOURCE_ONLY for path in folder.glob(f"{name}-*") if "-none-any" in path.name
    ]
    assert len(built) == len(SOURCE_ONLY), "a wheel that was built here fits this machine alone"
    found = [path.name for path in folder.glob("torch-*")]
    if torch == "cuda" and any("+cpu" in name for name in found):
        raise ConfigError(
            f"pip found {found[0]}, a CPU build, before any CUDA build: "
            "name an index that has one with TORCH_INDEX=<url>"
        )
