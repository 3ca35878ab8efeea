"""Getting a repository's files: side by side, going on where an earlier attempt ended, each verified.

They are gathered in a hidden folder that is renamed when the last of them has been hashed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from jobs.staging_disk import WORKERS, check_file, check_model, contents, locked, remember
from jobs.staging_hub import RemoteFile, fetch
from jobs.staging_lock import Locked, StagingError, write_locked
from jobs.staging_plan import Download, Say
from jobs.words import duration, size
from lada.errors import BusyError
from lada.lease import lease, read_owner
from lada.rundir import sync_dir
from lada.staged import StagedFile

SAY_SECONDS = 20.0
"""Between two lines about a download that goes on."""


def download(one: Download, say: Say) -> None:
    """Fetch a repository's files, verify them, pin them, and only then give the folder its name.

    Raises:
        BusyError: another staging is at work on it. StagingError, NoSpaceError: see `stage`.
    """
    wanted, kind, name = one.wanted, one.wanted.repository.kind, one.wanted.repository.name
    one.place.mkdir(parents=True, exist_ok=True)
    with _alone(one.place.with_name(f"{wanted.folder.name}.lease"), name):
        if wanted.folder.exists():
            raise StagingError(f"{wanted.folder} has appeared meanwhile: `make stage` again verifies it")
        if one.locked.revision is None:  # from here on: what goes on later is the same commit
            write_locked(kind, name, Locked(revision=one.revision))
        files = _fetch_all(one, say)
        for stray in set(contents(one.place)) - set(files):
            (one.place / stray).unlink()  # of an earlier choice of files
        if kind == "model":
            check_model(one.place)
        remember(one.place, name, one.revision, files)
        write_locked(kind, name, Locked(revision=one.revision, files=locked(files)))
        one.place.rename(wanted.folder)
        sync_dir(wanted.folder.parent)
    say(f"{name}: {len(files)} files, {size(one.size)}, verified and pinned: {wanted.folder}")


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    try:
        with lease(path):
            yield
    except BusyError as error:
        owner = read_owner(path) or {}
        raise BusyError(
            f"process {owner.get('pid')} on {owner.get('host')} stages {name}; wait for it. If it is "
            f"gone for good, remove {path}"
        ) from error


def _fetch_all(one: Download, say: Say) -> dict[str, StagedFile]:
    """Every file, several side by side; the first error stops all, what is there stays for the next time."""
    stopped, begun, before = threading.Event(), time.monotonic(), one.fetched
    found: dict[str, StagedFile] = {}
    pool = ThreadPoolExecutor(WORKERS)
    pending: dict[Future[StagedFile], str] = {
        pool.submit(_get, one, file, stopped): file.path for file in one.files
    }
    said = begun
    try:
        while pending:
            done, _ = wait(pending, timeout=SAY_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                found[pending.pop(future)] = future.result()
            now = time.monotonic()
            if pending and now - said >= SAY_SECONDS:
                said = now
                say(_progress(one, one.fetched, (one.fetched - before) / (now - begun)))
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return found


def _progress(one: Download, count: int, rate: float) -> str:
    left = f", about {duration((one.size - count) / rate)} left" if rate > 0 else ""
    return f"{one.wanted.repository}: {size(count)} of {size(one.size)}, {size(rate)}/s{left}"


def _get(one: Download, file: RemoteFile, stopped: threading.Event) -> StagedFile:
    """A file, whole and verified; what is half there is gone on with, what is wrong is thrown away."""
    target = one.place / file.path
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        target.rename(part)  # whole, unless the disk lost some of it
    pinned = one.locked.files.get(file.path)
    second_try = part.exists()
    while True:
        fetch(one.wanted.repository, one.revision, file, part, stopped=stopped)
        try:
            found = check_file(part, file, pinned.sha256 if pinned else None)
            break
        except StagingError as error:
            part.unlink()
            if second_try:
                second_try = False
                continue
            raise StagingError(
                f"{one.wanted.repository}: {error}. It was thrown away; the same command fetches it again. "
                "If that comes out the same, a proxy or mirror in between changes it"
            ) from error
    part.rename(target)
    sync_dir(target.parent)
    return found
