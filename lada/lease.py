"""One driver per run: a lease file, created whole, taken over at once when its owner is dead."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    owner = json.loads(text)
    where = f"process {owner['pid']} on {owner['host']}"
    if owner["host"] != socket.gethostname():
        raise BusyError(f"{where} drives this run; if it is gone for good, remove {path}")
    if _start(owner["pid"]) == owner["start"]:
        raise BusyError(f"{where} drives this run; wait for it, or stop it with `kill {owner['pid']}`")
    # Renaming first makes sure that of two takers only one removes this very lease.
    taken = path.with_name(f".{path.name}.dead.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(taken)
        taken.unlink()


def _start(pid: int) -> str | None:
    """Boot id and start time of a process: equal only for the same process of the same boot."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}/{fields[19]}"
