"""Stages that are warned: attempts that pause, what a stage left, and that pauses change none of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lada.errors import Paused
from lada.manifest import read_manifest
from lada.party import ModelCache
from lada.rundir import RunDir, Stage
from lada.stage import run_stage
from tests.federation import Quiet

CACHE = ModelCache()


class Warned:
    """Is asked at every safe point, and says yes from the n-th time on."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def attempt(
    run: RunDir, stage: Stage, number: int, warned: Callable[[], bool], *, divisor: int = 1
) -> list[str]:
    """One attempt, paused or not; returns its log."""
    log: list[str] = []
    try:
        run_stage(
            run,
            stage,
            attempt=f"{number:02d}-x",
            reporter=Quiet(),
            log=log.append,
            cache=CACHE,
            warned=warned,
            divisor=divisor,
        )
    except Paused as paused:
        log.append(str(paused))
    return log


def until_committed(run: RunDir, stage: Stage, every: int) -> list[str]:
    """Attempts that are each warned at their n-th safe point; returns all that they logged."""
    lines: list[str] = []
    for number in range(1, 400):
        lines += attempt(run, stage, number, Warned(every))
        if run.is_committed(stage):
            return lines
    raise AssertionError(f"no end: {lines[-5:]}")


def content(run: RunDir, stage: Stage) -> dict[str, object]:
    """All that a stage committed and published, without the name of the attempt."""
    manifest = read_manifest(run.commit(stage), stage.party, stage.name)
    folders = [run.commit(stage), *(run.root / "exchange" / stage.party).glob(f"*/{stage.name}")]
    files = [path for folder in folders for path in folder.rglob("*.*") if path.name != "manifest.json"]
    found: dict[str, object] = {path.relative_to(run.root).as_posix(): path.read_bytes() for path in files}
    return {**found, "manifest": (manifest.files, sorted(manifest.inputs))}


def without(run: RunDir, folder: Path, stage: Stage) -> RunDir:
    """A copy of a finished run in which a stage and all that depends on it has not happened."""
    copy = RunDir(folder / run.root.name)
    shutil.copytree(run.root, copy.root)
    shutil.rmtree(copy.commit(stage))
    for message in (copy.root / "exchange" / stage.party).glob(f"*/{stage.name}"):
        shutil.rmtree(message)
    return copy


def check_same_bytes(
    finished: RunDir,
    stage: Stage,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    every: int,
    inside: set[str],
) -> list[str]:
    """Run a stage of a finished run again, paused at every n-th safe point: it must commit the same bytes.

    Args:
        inside: kinds of phases that must have been gone on with from their inside.

    Returns:
        What the attempts logged.
    """
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    run = without(finished, folder, stage)
    lines = until_committed(run, stage, every)
    assert content(run, stage) == content(finished, stage)
    assert not run.resume(stage).exists()
    gone_on = re.findall(r"phase [\d-]+ \((\w+)\) goes on", "\n".join(lines))
    assert set(gone_on) >= inside, lines
    return lines
