"""Staged folders on the disk: what is in them, whether it is what was staged, whether there is room."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.staging_hub import RemoteFile
from jobs.staging_lock import LockedFile, StagingError, listed
from jobs.words import size as words
from lada.errors import ModelError, NoSpaceError
from lada.rundir import dump_json, write_atomic
from lada.staged import RECORD, Staged, StagedFile, file_digest, is_unchanged, read_record

WORKERS = 4
"""Files that are fetched, or hashed, side by side."""
INDEX = "model.safetensors.index.json"
MARGIN = 1 << 30
"""Bytes that have to stay free."""
HIDDEN = ".staging"
"""Folder, beside the staged ones, of what is not whole yet."""


def hashed(folder: Path, names: Iterable[str]) -> dict[str, StagedFile]:
    """Size, sha256 and time of change of files, all bytes read.

    Raises:
        StagingError: when one cannot be read.
    """

    def one(name: str) -> tuple[str, StagedFile]:
        path = folder / name
        try:
            before = path.stat()
            return name, StagedFile(
                size=before.st_size, sha256=file_digest(path), mtime_ns=before.st_mtime_ns
            )
        except OSError as error:
            raise StagingError(f"{path} cannot be read: {error.strerror}") from error

    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(pool.map(one, names))


def remembered(folder: Path, names: Iterable[str], *, full: bool = False) -> dict[str, StagedFile]:
    """As `hashed`, but files that the folder's record knows, and that did not change, are not read again.

    Args:
        full: read them all the same.
    """
    record = None if full else read_record(folder)
    known = {} if record is None else record.files
    fresh = {
        name: known[name] for name in names if name in known and is_unchanged(folder / name, known[name])
    }
    return fresh | hashed(folder, [name for name in names if name not in fresh])


def contents(folder: Path) -> list[str]:
    """Files of a folder, by path in it; names that begin with a dot are left out."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def locked(files: Mapping[str, StagedFile]) -> dict[str, LockedFile]:
    """What of a record goes into the lock."""
    return {name: LockedFile(size=one.size, sha256=one.sha256) for name, one in files.items()}


def remember(folder: Path, repository: str, revision: str | None, files: Mapping[str, StagedFile]) -> None:
    """Write a folder's record."""
    record = Staged(repository=repository, revision=revision, files=dict(files))
    write_atomic(folder / RECORD, dump_json(record.model_dump(mode="json")))


def try_to_remember(
    folder: Path, repository: str, revision: str | None, files: Mapping[str, StagedFile]
) -> bool:
    """Write a folder's record, unless the folder is somebody else's."""
    with contextlib.suppress(OSError):
        remember(folder, repository, revision, files)
        return True
    return False


def check_file(path: Path, expected: RemoteFile, sha256: str | None) -> StagedFile:
    """Hash a downloaded file and hold it against what the hub lists and the lock says.

    Args:
        sha256: of the lock; None where it has none.

    Raises:
        StagingError: naming both.
    """
    found = hashed(path.parent, [path.name])[path.name]
    wanted = [("the lock", sha256, found.sha256), ("the hub", expected.sha256, found.sha256)]
    if expected.blob is not None:
        wanted.append(("the hub", expected.blob, _git_blob(path)))
    if found.size != expected.size:
        raise StagingError(f"{expected.path} has {found.size:,} bytes, expected {expected.size:,}")
    for who, then, now in wanted:
        if then is not None and then != now:
            raise StagingError(f"{expected.path} has hash {now[:12]}, {who} says {then[:12]}")
    return found


def _git_blob(path: Path) -> str:
    """Git's id of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def check_model(folder: Path) -> None:
    """Whether a folder has what a model is loaded from: config, tokenizer, all files that hold its weights.

    Raises:
        ModelError: naming what is missing.
    """
    names = set(contents(folder))
    missing = [] if "config.json" in names else ["config.json"]
    if not names & {"tokenizer.json", "tokenizer.model"}:
        missing.append("tokenizer.json (or tokenizer.model)")
    if INDEX in names:
        missing += sorted(_indexed(folder / INDEX) - names)
    elif not any(name.endswith(".safetensors") for name in names):
        missing.append("model.safetensors")
    if missing:
        raise ModelError(f"{folder} is no whole model, it lacks {listed(missing)}")


def _indexed(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} does not list the files of the weights ({error})") from error


def check_space(needs: Mapping[Path, int]) -> None:
    """Refuse to begin what the disks have no room for. Quotas are not seen.

    Args:
        needs: folder -> bytes still to come; folders of one disk are added up.

    Raises:
        NoSpaceError: naming folder, need and what is free.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needs.items():
        disk = folder.stat().st_dev
        first, before = disks.get(disk, (folder, 0))
        disks[disk] = (first, before + count)
    for folder, count in disks.values():
        free = shutil.disk_usage(folder).free
        if count and free < count + MARGIN:
            raise NoSpaceError(
                f"{folder} has {words(free)} free, {words(count)} are to be fetched and {words(MARGIN)} "
                "should stay free: make room, or name other folders (`models`, `data` of the cluster file)"
            )
