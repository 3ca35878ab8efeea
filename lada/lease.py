"""One driver per run: a lease file, created whole, taken over at once when its owner is dead."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lada.errors import BusyError

Owner = Mapping[str, Any]
"""host, pid, start and, inside a Slurm job, its id."""


@contextlib.contextmanager
def lease(path: Path, *, gone: Callable[[Owner], bool] = lambda owner: False) -> Iterator[Callable[[], None]]:
    """Hold the lease file while inside.

    Args:
        gone: whether an owner on another host is over for good, as far as somebody else (Slurm) knows.

    Yields:
        A check that raises BusyError once somebody else took the lease over.

    Raises:
        BusyError: when a live process on this host, or one on another host that may be alive, holds it.
    """
    job = os.environ.get("SLURM_JOB_ID")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start(os.getpid())}
    mine = json.dumps(owner | ({"job": job} if job else {}))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(mine, encoding="utf-8")
    try:
        while not _link(temporary, path):
            _evict_dead(path, gone)
    finally:
        temporary.unlink()
    try:
        yield lambda: _check(path, mine)
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == mine:
                path.unlink()


def _check(path: Path, mine: str) -> None:
    try:
        found = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = ""
    except OSError:
        return  # a file server that stutters says nothing of who holds the lease
    if found != mine:
        raise BusyError(f"this driver lost the run: {path} now says {found or 'nothing'}")


def _link(source: Path, target: Path) -> bool:
    # link(2) is atomic where O_EXCL is not, on old network file systems.
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _evict_dead(path: Path, gone: Callable[[Owner], bool]) -> None:
    # A lock of this host lets its processes in one at a time. Between hosts the rename is what only one wins,
    # and who moved away a lease that it had not judged puts it back.
    with path.with_name(f".{path.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            judged = path.read_text(encoding="utf-8")
            _refuse_if_alive(path, judged, gone)
            moved = path.with_name(f".{path.name}.dead.{os.getpid()}")
            path.rename(moved)
            if moved.read_text(encoding="utf-8") != judged:
                _link(moved, path)
            moved.unlink()


def _refuse_if_alive(path: Path, text: str, gone: Callable[[Owner], bool]) -> None:
    try:
        owner = json.loads(text)
        host, pid, start = owner["host"], owner["pid"], owner["start"]
    except (ValueError, KeyError, TypeError) as error:
        raise BusyError(f"{path} names no owner; if no driver is at work on this run, remove it") from error
    job = f" (job {owner['job']})" if "job" in owner else ""
    where = f"process {pid} on {host}{job}"
    if host != socket.gethostname():
        if gone(owner):
            return
        raise BusyError(f"{where} drives this run; if it is gone for good, remove {path}")
    if _start(pid) == start:
        stop = f"scancel {owner['job']}" if "job" in owner else f"kill {pid}"
        raise BusyError(f"{where} drives this run; wait for it, or stop it with `{stop}`")


def read_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lease: host, pid, start and, inside a job, its id; None where no readable lease is."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def owner_lives(owner: Mapping[str, Any]) -> bool | None:
    """Whether the process that holds a lease is alive; None where it cannot be seen: on another host."""
    if owner.get("host") != socket.gethostname():
        return None
    pid = owner.get("pid")
    return isinstance(pid, int) and _start(pid) == owner.get("start")


def _start(pid: int) -> str | None:
    """Boot id and start time of a process: equal only for the same process of the same boot."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}/{fields[19]}"
