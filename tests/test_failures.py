"""Why a job ended: Slurm's word, the node's exit file and the job's own output, taken together."""

from __future__ import annotations

import pytest

from jobs.failures import ExitRecord, classify
from lada.policy import Cause


def record(code: int) -> ExitRecord:
    return ExitRecord(code, "last words", "n1", 1.0, 2.0)


@pytest.mark.parametrize(
    ("state", "code", "said", "begun", "cause"),
    [
        ("PREEMPTED", None, "", True, Cause.PREEMPTED),
        ("NODE_FAIL", None, "", True, Cause.NODE_LOST),
        ("BOOT_FAIL", None, "", False, Cause.NODE_LOST),
        ("OUT_OF_MEMORY", 137, "", True, Cause.OUT_OF_MEMORY),
        # Slurm without cgroups cancels a step that used too much, and says so only in its output.
        (
            "CANCELLED",
            None,
            "slurmstepd: error: Exceeded job memory limit at some point.",
            True,
            Cause.CANCELLED,
        ),
        ("FAILED", 137, "Job 7 exceeded memory limit (300 > 100), being killed", True, Cause.OUT_OF_MEMORY),
        ("CANCELLED", None, "*** STEP 7.0 CANCELLED DUE TO PREEMPTION ***", True, Cause.PREEMPTED),
        ("CANCELLED", None, "*** JOB 7 ON n1 CANCELLED DUE TO NODE FAILURE ***", True, Cause.NODE_LOST),
        ("TIMEOUT", None, "", True, Cause.TIMEOUT),
        (
            "FAILED",
            137,
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0",
            True,
            Cause.OUT_OF_MEMORY,
        ),
        ("", 137, "*** STEP 7.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***", True, Cause.TIMEOUT),
        # Told to end, it saved a resume point.
        ("CANCELLED", 85, "", True, Cause.CANCELLED),
        # The time limit came, but the stage had saved a resume point.
        ("TIMEOUT", 85, "", True, Cause.WARNED),
        ("CANCELLED", None, "", True, Cause.CANCELLED),
        ("FAILED", 2, "", True, Cause.USER_ERROR),
        ("FAILED", 5, "", True, Cause.CORRUPT),
        ("FAILED", 10, "", True, Cause.DEVICE_MEMORY),
        ("FAILED", 12, "", True, Cause.NO_SPACE),
        ("FAILED", 1, "OSError: [Errno 28] No space left on device", True, Cause.NO_SPACE),
        ("FAILED", 137, "", True, Cause.CRASHED),
        # A masked exit code: the job "completed", yet nothing was committed.
        ("COMPLETED", 0, "", True, Cause.CRASHED),
        (
            "FAILED",
            None,
            "Waited for 60 seconds but could not find submitted jobs",
            False,
            Cause.NEVER_STARTED,
        ),
        ("", None, "", False, Cause.NEVER_STARTED),
        ("", None, "", True, Cause.CRASHED),
    ],
)
def test_cause(state: str, code: int | None, said: str, begun: bool, cause: Cause) -> None:
    assert classify(state, None if code is None else record(code), said, begun=begun) == cause
