"""Slurm's reasons and our causes of failure in plain words, each with what a person can do about it.

Source: squeue(1), "Job reason codes", Slurm 22.05 to 25.05.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why a job waits.

    Attributes:
        text: in plain words.
        todo: what a person can do; empty where only waiting helps.
        stuck: whether it will not start by itself.
    """

    text: str
    todo: str = ""
    stuck: bool = False


_CLUSTER_FILE = "change it in configs/clusters/<name>.yaml"
_HELD = "`scontrol release <job>` lets it go, `make cancel` gives it up"
REASONS: dict[str, Reason] = {
    "None": Reason("Slurm has not looked at it yet"),
    "WaitingForScheduling": Reason("Slurm has not looked at it yet"),
    "SchedDefer": Reason("Slurm has not looked at it yet"),
    "Resources": Reason("waits for free GPUs, cores or memory"),
    "Priority": Reason("other jobs come first"),
    "BeginTime": Reason("may not begin before a set time; a requeued job waits a minute or two"),
    "Dependency": Reason("waits for another job, or for an earlier attempt of the same name (singleton)"),
    "DependencyNeverSatisfied": Reason(
        "waits for a job that failed, so it never starts", "`make cancel`, then `make resume`", stuck=True
    ),
    "Licenses": Reason("waits for a licence"),
    "Reservation": Reason("waits for its reservation to begin"),
    "ReservationDeleted": Reason("its reservation is gone", f"reservation: {_CLUSTER_FILE}", stuck=True),
    "InvalidReservation": Reason(
        "its reservation does not exist", f"reservation: {_CLUSTER_FILE}", stuck=True
    ),
    "ReqNodeNotAvail": Reason(
        "nodes that it needs are down, drained or reserved", "`sinfo -R` says why; else ask the site's admins"
    ),
    "Nodes required for job are DOWN": Reason(
        "nodes that it needs are down, drained or reserved", "`sinfo -R` says why; else ask the site's admins"
    ),
    "NodeDown": Reason("a node that it needs is down", "`sinfo -R` says why"),
    "PartitionDown": Reason("the partition is closed at present", f"wait, or partition: {_CLUSTER_FILE}"),
    "PartitionInactive": Reason(
        "the partition takes no jobs at present", f"wait, or partition: {_CLUSTER_FILE}"
    ),
    "PartitionNodeLimit": Reason(
        "asks for more nodes than the partition allows a job", f"nodes: {_CLUSTER_FILE}", stuck=True
    ),
    "PartitionTimeLimit": Reason(
        "asks for more time than the partition allows", f"minutes: {_CLUSTER_FILE}", stuck=True
    ),
    "PartitionConfig": Reason(
        "asks for what the partition does not have", f"resources: {_CLUSTER_FILE}", stuck=True
    ),
    "BadConstraints": Reason(
        "no node has what it asks for", f"resources, constraint: {_CLUSTER_FILE}", stuck=True
    ),
    "Constraints": Reason("no free node fits its constraint", f"constraint: {_CLUSTER_FILE}"),
    "JobHeldUser": Reason("you hold it", _HELD, stuck=True),
    "JobHeldAdmin": Reason("an administrator holds it", "ask the site's admins", stuck=True),
    "JobHoldMaxRequeue": Reason("was requeued too often and is held now", _HELD, stuck=True),
    "launch failed requeued held": Reason(
        "could not be launched and is held now; its node may be drained",
        f"`sinfo -R` names the node; {_HELD}",
        stuck=True,
    ),
    "job requeued in held state": Reason("was requeued and is held now", _HELD, stuck=True),
    "JobLaunchFailure": Reason("could not be launched", "`sinfo -R` names the node, `make logs` the rest"),
    "InvalidAccount": Reason(
        "Slurm does not know the account", f"account: {_CLUSTER_FILE}; `sacctmgr show assoc user=$USER`", True
    ),
    "AccountNotAllowed": Reason(
        "the partition does not take this account", f"account, partition: {_CLUSTER_FILE}", stuck=True
    ),
    "InvalidQOS": Reason(
        "the account may not use this QOS", f"qos: {_CLUSTER_FILE}; `sacctmgr show assoc user=$USER`", True
    ),
    "QOSNotAllowed": Reason(
        "the partition does not take this QOS", f"qos, partition: {_CLUSTER_FILE}", stuck=True
    ),
    "QOSUsageThreshold": Reason("the QOS has used up its share for now"),
    "AssociationJobLimit": Reason("your account is at its limit of jobs"),
    "AssociationResourceLimit": Reason("your account is at a limit of resources"),
    "AssociationTimeLimit": Reason("your account has used up its time", "ask the site's admins", stuck=True),
    "JobArrayTaskLimit": Reason("its array is at its limit of tasks"),
    "Cleaning": Reason("its earlier attempt is being cleaned up on the node"),
    "Prolog": Reason("the node is being prepared for it"),
    "DeadLine": Reason("cannot end before its deadline", stuck=True),
    "SystemFailure": Reason("Slurm or a node failed", "ask the site's admins if it stays"),
    "InactiveLimit": Reason("reached the site's limit of idle time"),
    "TimeLimit": Reason("reached its time limit"),
    "NonZeroExitCode": Reason("ended with an error"),
    "OutOfMemory": Reason("ran out of memory"),
}
"""Reason code as squeue shows it -> words."""

_LIMIT = re.compile(r"^(Assoc|QOS)(Grp|Max|Min)(.+?)(PerUser|PerAccount|PerJob|PerNode)?(Limit)?$")
_LIMITED = (
    ("RunMinutes", "time that all running jobs together still have"),
    ("Minutes", "its budget of time"),
    ("Wall", "time"),
    ("SubmitJobs", "jobs in the queue"),
    ("Jobs", "jobs at once"),
    ("GRES", "GPUs"),
    ("Gres", "GPUs"),
    ("Cpu", "cores"),
    ("CPU", "cores"),
    ("Mem", "memory"),
    ("Node", "nodes"),
    ("Billing", "billing units"),
)


def reason_words(code: str) -> Reason:
    """Plain words for a reason of squeue, e.g. ``QOSMaxGRESPerUser``; the code itself where unknown."""
    bare = code.strip().strip("()")
    known = REASONS.get(bare) or REASONS.get(re.split(r"[,:(]", bare, maxsplit=1)[0].strip())
    if known is not None:
        return known
    limit = _LIMIT.match(bare)
    if limit is None:
        return Reason(f"Slurm says: {bare or 'nothing'}")
    whose = "your account's" if limit[1] == "Assoc" else "the QOS's"
    what = next((words for part, words in _LIMITED if part in limit[3]), limit[3])
    if limit[2] == "Min":
        return Reason(f"asks for less than {whose} least {what}", f"resources: {_CLUSTER_FILE}", stuck=True)
    if limit[4] in ("PerJob", "PerNode") or (limit[2] == "Max" and "Wall" in limit[3]):
        each = "a node" if limit[4] == "PerNode" else "a job"
        return Reason(
            f"asks for more than {whose} limit of {what} for {each}", f"resources, qos: {_CLUSTER_FILE}", True
        )
    if "Minutes" in limit[3] and "Run" not in limit[3]:
        return Reason(f"{whose} budget of time is used up", "ask the site's admins for more", stuck=True)
    who = {"PerUser": " per user", "PerAccount": " per account"}.get(limit[4] or "", "")
    return Reason(f"waits: {whose} limit of {what}{who} is reached")


CAUSES: dict[str, str] = {
    "preempted": "another job took its place",
    "timeout": "reached its time limit",
    "out_of_memory": "ran out of memory",
    "device_memory": "ran out of GPU memory",
    "node_lost": "its node was lost",
    "no_gpu": "saw no GPU, or fewer than it asked for",
    "no_space": "no space left on the disk",
    "corrupt": "what was read or written is not what it should be",
    "user_error": "configuration, data or model cannot be used as they are",
    "cancelled": "was cancelled",
    "hung": "made no progress and was ended",
    "never_started": "its job ended before its first line ran",
    "warned": "was told to stop, and saved where it was",
    "crashed": "ended with an error",
    "rejected": "its commit was refused",
}
"""Cause of a failure as the ledger names it (lada.policy) -> words."""


def cause_words(cause: str) -> str:
    """Plain words for a cause of failure; the cause itself where unknown."""
    return CAUSES.get(cause, cause.replace("_", " ") or CAUSES["crashed"])


def duration(seconds: float) -> str:
    """A duration as people say it: ``1.5 s``, ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    """Bytes as people say them: ``820 kB``, ``3.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text that another party wrote, without control characters: nothing in it can steer a terminal."""
    return CONTROL.sub("�", text.replace("\r", "\n"))
