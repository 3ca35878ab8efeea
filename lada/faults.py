"""Named points at which a test may kill this process, to prove that a run survives it.

``LADA_CRASH_AT=commit.renamed`` kills at the first passage of that point, ``commit.renamed:3`` at the third.
Without the variable every call returns at once. It means this very process: jobs do not inherit it. For a
driver's job it is LADA_CRASH_DRIVER, for the first attempt of stages
``LADA_CRASH_STAGE=client-1/r01-learn=commit.renamed,server/r01-learn=…``.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "init.data-written",
    "init.run-written",
    "commit.files-written",
    "commit.manifest-written",
    "commit.renamed",
    "publish.copied",
    "publish.renamed",
    "reuse.copied",
    "ledger.half-line",
    "ledger.line-written",
    "metrics.before-replace",
    "metrics.replaced",
)

LAUNCH_POINTS = ("launch.submitting", "launch.submitted")
"""Points of a driver with Slurm: before sbatch, and between its reply and the ledger."""

_passed: dict[str, int] = {}


def stage_crash(stage: str, attempt: str) -> str | None:
    """LADA_CRASH_AT for an attempt of a stage, None where nothing is asked of it."""
    asked = dict(pair.split("=") for pair in os.environ.get("LADA_CRASH_STAGE", "").split(",") if pair)
    return asked.get(stage) if attempt.startswith("01-") else None


def aim_at_driver() -> None:
    """From here on this process is the driver that LADA_CRASH_DRIVER means."""
    wanted = os.environ.pop("LADA_CRASH_DRIVER", None)
    if wanted is not None:
        os.environ["LADA_CRASH_AT"] = wanted


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL if the environment asks for it here."""
    wanted = os.environ.get("LADA_CRASH_AT")
    if wanted is None:
        return
    assert name in POINTS + LAUNCH_POINTS, name
    point, _, number = wanted.partition(":")
    if point != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
