"""Checks of the folder of all runs: what commits, lease and exchange expect of a file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jobs.finding import Finding, fail, ok, warn
from jobs.words import size

SKEW_SECONDS = 5.0
MARGIN = 5
"""Times the floor of free space below which the doctor warns."""


def check_runs_folder(runs: Path, *, free_gb: float) -> list[Finding]:
    """All checks of a folder of runs; what is written for them is removed again.

    Args:
        runs: made if it is not there.
        free_gb: below this the driver starts no stage.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs))
    except OSError as error:
        mend = "name another folder with RUNS=, on the file system that compute nodes share"
        return [fail("runs folder", f"{runs} cannot be written: {error.strerror}", mend)]
    try:
        found = [ok("runs folder", f"{runs.resolve()} can be written"), check_space(runs, free_gb=free_gb)]
        return found + [_careful(name, check, folder) for name, check in PROPERTIES.items()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_space(runs: Path, *, free_gb: float) -> Finding:
    """Free space, against the floor below which nothing is started. Quotas are not seen."""
    free = shutil.disk_usage(runs).free
    text = f"{size(free)} free (quotas are not seen here)"
    if free < free_gb * 1e9:
        return fail("space", f"{text}; runs pause below {free_gb:g} GB", "free some, or set patience.free_gb")
    if free < MARGIN * free_gb * 1e9:
        return warn("space", f"{text}; runs pause below {free_gb:g} GB", "free some before a long run")
    return ok("space", text)


def _careful(name: str, check: Callable[[Path], Finding], folder: Path) -> Finding:
    try:
        return check(folder)
    except OSError as error:
        return fail(name, f"failed: {error}", "put runs on another file system (RUNS=)")


def check_rename(folder: Path) -> Finding:
    """A rename replaces a file at once, and refuses to replace a folder that is not empty."""
    name = "rename"
    _write(folder / "old", b"old")
    _write(folder / "new", b"new")
    (folder / "new").rename(folder / "old")
    if (folder / "old").read_bytes() != b"new" or (folder / "new").exists():
        return fail(name, "does not replace a file", "put runs on another file system (RUNS=)")
    for part in ("first", "second"):
        (folder / part).mkdir()
        _write(folder / part / "manifest", part.encode())
    try:
        (folder / "second").rename(folder / "first")
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return ok(name, "replaces a file whole, and never a folder with something in it")
    return fail(
        name,
        "replaces a folder that is not empty: a second commit could take the place of the first",
        "put runs on another file system (RUNS=)",
    )


def check_sync(folder: Path) -> Finding:
    """What was written survives a crash: fsync of a file, and of its folder."""
    name = "fsync"
    begun = time.monotonic()
    _write(folder / "synced", b"x" * 4096)
    took = time.monotonic() - begun
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return warn(
            name,
            f"works for files ({1000 * took:.0f} ms), not for folders ({error.strerror})",
            "after a power failure the newest commit may be gone; it is then computed again",
        )
    return ok(name, f"of files and folders ({1000 * took:.0f} ms)")


def check_links(folder: Path) -> Finding:
    """link(2) refuses an existing name, and the count of links is right: lease and exchange rest on both."""
    name = "hard links"
    mend = "put runs on a file system with hard links (RUNS=)"
    one, two = folder / "one", folder / "two"
    _write(one, b"1")
    try:
        os.link(one, two)
    except OSError as error:
        return fail(name, f"cannot be made: {error.strerror}", mend)
    counts = [one.stat().st_nlink]
    with contextlib.suppress(FileExistsError):
        os.link(one, two)
        return fail(name, "a second link of the same name was not refused", mend)
    two.unlink()
    counts.append(one.stat().st_nlink)
    if counts != [2, 1]:
        return fail(name, f"are counted as {counts}, expected [2, 1]", mend)
    return ok(name, "are made once, refused the second time, and counted")


def check_lock(folder: Path) -> Finding:
    """A second taker of a dead driver's lease is kept out by flock."""
    name = "flock"
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            mend = "ask for the mount option `flock`; until then remove a dead driver's driver.lease by hand"
            return warn(name, f"does not work: {error.strerror}", mend)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ok(name, "keeps a second taker out")
    return warn(name, "lets two in at once", "start no two drivers of one run at the same moment")


def check_clock(folder: Path) -> Finding:
    """The file server's clock against this host's; nothing rests on it but what people read."""
    name = "clock"
    _write(folder / "now", b"")
    skew = (folder / "now").stat().st_mtime - time.time()
    if abs(skew) > SKEW_SECONDS:
        return warn(name, f"the file server is {skew:+.0f} s off this host", "ask the site for NTP")
    return ok(name, f"of the file server and of this host differ by {abs(skew):.1f} s")


PROPERTIES: dict[str, Callable[[Path], Finding]] = {
    "rename": check_rename,
    "fsync": check_sync,
    "hard links": check_links,
    "flock": check_lock,
    "clock": check_clock,
}
"""What a folder of runs must do; each check gets an empty folder of its own making inside it."""


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
