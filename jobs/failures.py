"""Why a job ended without a commit: from Slurm's word, the node's exit file, and what the job said."""

from __future__ import annotations

from dataclasses import dataclass

from lada.policy import Cause, cause_of_exit

STATES = {
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE_LOST,
    "BOOT_FAIL": Cause.NODE_LOST,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
}
SAID = (
    # Slurm's and the kernel's words in a job's output, where its state alone does not tell.
    ("exceeded memory limit", Cause.OUT_OF_MEMORY),
    ("oom-kill", Cause.OUT_OF_MEMORY),
    ("oom_kill", Cause.OUT_OF_MEMORY),
    ("OOM Killed", Cause.OUT_OF_MEMORY),
    ("DUE TO TIME LIMIT", Cause.TIMEOUT),
    ("Out Of Memory", Cause.OUT_OF_MEMORY),
    ("DUE TO PREEMPTION", Cause.PREEMPTED),
    ("DUE TO NODE FAILURE", Cause.NODE_LOST),
    ("No space left on device", Cause.NO_SPACE),
    ("Disk quota exceeded", Cause.NO_SPACE),
)


@dataclass(frozen=True)
class ExitRecord:
    """What the host function left of a stage's process.

    Attributes:
        exit_code: of the process; negative where a signal ended it.
        detail: its last line where it failed.
        node: where it ran. began, ended: seconds since 1970. restarts: Slurm's count of this job.
        requeued: the job put itself back into the queue: this is no end.
    """

    exit_code: int
    detail: str
    node: str = ""
    began: float = 0.0
    ended: float = 0.0
    restarts: int = 0
    requeued: bool = False


def classify(state: str, record: ExitRecord | None, said: str, *, begun: bool) -> Cause:
    """The cause of a failure.

    Args:
        state: Slurm's state of the job; empty where it knows none.
        record: of this attempt, None where the host function wrote none.
        said: the end of the job's own output.
        begun: whether the stage's log has a line.
    """
    if state in STATES:
        return STATES[state]
    stated = None if record is None else cause_of_exit(record.exit_code)
    if state == "CANCELLED" and stated == Cause.WARNED:
        stated = None  # told to end, it saved a resume point: that is no want of time
    if stated is not None and stated != Cause.CRASHED:
        return stated
    for words, cause in SAID:
        if words in said:
            return cause
    if state in ("TIMEOUT", "DEADLINE"):
        return Cause.TIMEOUT
    if state == "CANCELLED":
        return Cause.CANCELLED
    return Cause.CRASHED if begun or record is not None else Cause.NEVER_STARTED
