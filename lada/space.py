"""Room on a disk: whether there is enough, and whether a write would really succeed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

PROBE_BYTES = 1 << 20
"""Size of the file that is written to see whether a disk, or a quota, has room."""


STUTTERS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
"""Errors of a file server that may be well again a moment later."""


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def has_free(folder: Path, count: int) -> bool:
    """Whether the folder's disk has that many bytes free; quotas are not seen."""
    return shutil.disk_usage(folder).free >= count


def can_write(folder: Path, count: int = PROBE_BYTES) -> bool:
    """Whether a file of that many bytes can be written and synced there now; it is removed again."""
    probe = folder / f".space-probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(count))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if not is_full(error):
            raise
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()
    return True
