"""One driver per run: a lease file, created whole, taken over at once when its owner is dead."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lada.errors import BusyError


@contextlib.contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lease file while inside.

    Raises:
        BusyError: when a live process on this host, or any process on another host, holds it.
    """
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": _start(os.getpid())})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(mine, encoding="utf-8")
    try:
        while not _link(temporary, path):
            _evict_dead(path)
    finally:
        temporary.unlink()
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == mine:
                path.unlink()


def _link(source: Path, target: Path) -> bool:
    # link(2) is atomic where O_EXCL is not, on old network file systems.
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _evict_dead(path: Path) -> None:
    # Only processes of the dead owner's host evict it, so a lock of this host lets in one at a time: nobody
    # can remove the lease that another taker has just made.
    with path.with_name(f".{path.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            _refuse_if_alive(path, path.read_text(encoding="utf-8"))
            path.unlink()


def _refuse_if_alive(path: Path, text: str) -> None:
    try:
        owner = json.loads(text)
        host, pid, start = owner["host"], owner["pid"], owner["start"]
    except (ValueError, KeyError, TypeError) as error:
        raise BusyError(f"{path} names no owner; if no driver is at work on this run, remove it") from error
    where = f"process {pid} on {host}"
    if host != socket.gethostname():
        raise BusyError(f"{where} drives this run; if it is gone for good, remove {path}")
    if _start(pid) == start:
        raise BusyError(f"{where} drives this run; wait for it, or stop it with `kill {pid}`")


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
