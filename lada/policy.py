"""What to do about a stage whose attempt failed: a pure function of its failures so far.

=============== ============================================ ==========================================
cause           how it shows                                 what the driver does
=============== ============================================ ==========================================
warned          exit code 85: a resume point was saved       goes on from there, with more time
preempted       Slurm took the node back                     runs it again
timeout         the time limit came, no resume point         half as much time again
out_of_memory   the host's memory                            half as much memory again
device_memory   the GPU's memory                             half the micro-batch, same effective batch
node_lost       the node died                                runs it on another node
no_gpu          exit code 17: torch sees none, or too few    runs it on another node, once
hung            no sign of progress for too long             ends it, runs it on another node
no_space        the disk is full                             pauses until there is space
corrupt         a commit or message was refused              quarantines it, runs it again
cancelled       somebody else's scancel                      runs it again
never_started   the job ended before the stage began         runs it again
crashed         anything else                                runs it again
user_error      wrong configuration, data or code            stops the run
=============== ============================================ ==========================================

Every cause has a limit, after which the run stops and says why. What was done is in the ledger, never in
metrics.csv. Choice: all factors and limits; the paper has no such part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from lada.errors import NOT_RETRIED

GROWTH = 1.5
"""Factor on memory or time after each failure for want of it."""

MAX_GROWTHS = 4
"""How often time grows; a stage that is warned again and again needs no more than that to get on."""
MAX_EXCLUDED = 2
"""Nodes to keep away from at most, the newest: a small site would otherwise run out of nodes."""


class Cause(StrEnum):
    """Why an attempt ended without a good commit."""

    WARNED = "warned"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_MEMORY = "device_memory"
    NODE_LOST = "node_lost"
    NO_GPU = "no_gpu"
    HUNG = "hung"
    NO_SPACE = "no_space"
    CORRUPT = "corrupt"
    CANCELLED = "cancelled"
    NEVER_STARTED = "never_started"
    CRASHED = "crashed"
    USER_ERROR = "user_error"


LIMITS = {
    Cause.WARNED: 200,
    Cause.PREEMPTED: 50,
    Cause.TIMEOUT: 4,
    Cause.OUT_OF_MEMORY: 4,
    Cause.DEVICE_MEMORY: 4,
    Cause.NODE_LOST: 6,
    Cause.NO_GPU: 2,
    Cause.NO_SPACE: 10,
    Cause.USER_ERROR: 1,
}
"""Failures of a cause at which the run stops; for the other causes it is the driver's ``max_attempts``."""

EXIT_CAUSES = {
    5: Cause.CORRUPT,
    10: Cause.DEVICE_MEMORY,
    11: Cause.OUT_OF_MEMORY,
    12: Cause.NO_SPACE,
    17: Cause.NO_GPU,
    85: Cause.WARNED,
    **dict.fromkeys(NOT_RETRIED, Cause.USER_ERROR),
}
"""Causes that an exit code of a stage states by itself."""

ADVICE = {
    Cause.TIMEOUT: "give the stage more minutes in the cluster file",
    Cause.OUT_OF_MEMORY: "give the stage more memory_gb in the cluster file",
    Cause.DEVICE_MEMORY: "give the stage more gpus, or lower training.*.micro_tokens",
    Cause.NODE_LOST: "ask the site what is wrong with its nodes",
    Cause.NO_GPU: "make doctor looks for GPUs inside the image, on a node",
    Cause.HUNG: "see the stage's log; patience.hang_minutes may be too short",
    Cause.NO_SPACE: "free disk space",
}


@dataclass(frozen=True)
class Failure:
    """One failed attempt of a stage."""

    cause: Cause
    node: str | None = None


@dataclass(frozen=True)
class Change:
    """What the next attempt gets that the first did not.

    Attributes:
        memory, minutes: factors on what the cluster file gives.
        micro_batch_divisor: of the micro-batch; the effective batch stays.
        exclude: nodes to keep away from.
    """

    memory: float = 1.0
    minutes: float = 1.0
    micro_batch_divisor: int = 1
    exclude: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What differs from no change at all, for the ledger."""
        plain = asdict(Change())
        return {key: value for key, value in asdict(self).items() if value != plain[key]}


@dataclass(frozen=True)
class Decision:
    """What to do now; ``reason`` says why a run stops."""

    action: Literal["retry", "pause", "stop"]
    change: Change = Change()
    reason: str = ""


def cause_of_exit(exit_code: int) -> Cause:
    """The cause that an exit code states, `Cause.CRASHED` where it states none."""
    return EXIT_CAUSES.get(exit_code, Cause.CRASHED)


def decide(failures: Sequence[Failure], *, max_attempts: int) -> Decision:
    """What to do after the last of a stage's failures.

    Args:
        failures: of this stage since a person last started the run, oldest first; at least one.
        max_attempts: limit of every cause that `LIMITS` does not name.
    """
    cause = failures[-1].cause
    count = sum(failure.cause == cause for failure in failures)
    if cause == Cause.USER_ERROR:
        return Decision("stop", reason="failed for good")
    if count >= LIMITS.get(cause, max_attempts):
        advice = f" ({cause}: {ADVICE[cause]})" if cause in ADVICE else ""
        return Decision("stop", reason=f"failed {count} times{advice}")
    return Decision("pause" if cause == Cause.NO_SPACE else "retry", change_after(failures))


def change_after(failures: Sequence[Failure]) -> Change:
    """What all failures so far add up to."""
    counts = {cause: sum(failure.cause == cause for failure in failures) for cause in Cause}
    bad_nodes = [
        failure.node
        for failure in failures
        if failure.cause in (Cause.NODE_LOST, Cause.NO_GPU, Cause.HUNG) and failure.node is not None
    ]
    return Change(
        memory=GROWTH ** counts[Cause.OUT_OF_MEMORY],
        minutes=GROWTH ** min(counts[Cause.TIMEOUT] + counts[Cause.WARNED], MAX_GROWTHS),
        micro_batch_divisor=2 ** counts[Cause.DEVICE_MEMORY],
        exclude=tuple(sorted(set(bad_nodes[-MAX_EXCLUDED:]))),
    )
