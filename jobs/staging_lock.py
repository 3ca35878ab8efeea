"""configs/staging.lock.json: revision, sizes and sha256 of everything that was ever staged.

The first staging writes what it found; from then on what the hub, a mirror or a disk gives has to be that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lada.config import Options
from lada.errors import LadaError
from lada.layers import CONFIGS, read_yaml, validate
from lada.rundir import dump_json, write_atomic
from lada.staged import Digest, Revision

LOCK = CONFIGS / "staging.lock.json"
Kind = Literal["model", "dataset"]
SHOWN = 3
"""Differences that an error lists."""


class StagingError(LadaError):
    """The hub cannot be reached or refuses, or something is not what the lock says."""

    exit_code = 15


class LockedFile(Options):
    """A file's size in bytes and its sha256."""

    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class Locked(Options):
    """A repository at one commit.

    Attributes:
        revision: the commit; None: nobody has staged it yet.
        files: by path; empty until every one of them was there and hashed.
    """

    revision: Revision | None = None
    files: dict[str, LockedFile] = Field(default_factory=dict)


class Lock(Options):
    """The whole lock file, by kind and hub's name."""

    models: dict[str, Locked] = Field(default_factory=dict)
    datasets: dict[str, Locked] = Field(default_factory=dict)

    def of(self, kind: Kind, name: str) -> Locked:
        """What is known of a repository; nothing, where it has no entry."""
        known = self.models if kind == "model" else self.datasets
        return known.get(name, Locked())


def read_lock(path: Path | None = None) -> Lock:
    """The lock file; None: this checkout's.

    Raises:
        ConfigError: it is missing, or somebody edited it to something that is no lock.
    """
    path = path or LOCK
    content = read_yaml(path)  # JSON is YAML
    return validate(Lock, content, {key: str(path) for key in content})


def write_locked(kind: Kind, name: str, entry: Locked, path: Path | None = None) -> None:
    """Change one entry; two stagings at once do not lose each other's."""
    path = path or LOCK
    guard = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some shared file systems have no flock
            fcntl.flock(guard, fcntl.LOCK_EX)
        content = read_lock(path).model_dump(mode="json")
        content[f"{kind}s"][name] = entry.model_dump(mode="json")
        write_atomic(path, dump_json(content))
    finally:
        os.close(guard)


def differences(locked: Mapping[str, LockedFile], found: Mapping[str, LockedFile]) -> list[str]:
    """What differs, a line each: files that one side lacks, other sizes, other hashes."""
    lines = []
    for name in sorted({*locked, *found}):
        then, now = locked.get(name), found.get(name)
        if then is None or now is None:
            lines.append(f"{name} is {'not in the lock' if then is None else 'missing'}")
        elif then.size != now.size:
            lines.append(f"{name} has {now.size:,} bytes, the lock says {then.size:,}")
        elif then.sha256 != now.sha256:
            lines.append(f"{name} has sha256 {now.sha256[:12]}, the lock says {then.sha256[:12]}")
    return lines


def listed(lines: list[str]) -> str:
    """The first few lines of several, and how many more there are."""
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
