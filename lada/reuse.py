"""Local fine-tuning is done once for all methods: a later run with the same inputs takes what one computed.

A party's first stage measures its model, trains it on its own questions and measures it again (`lada.local`):
the same for every method. The driver keeps what came of it in ``<runs>/.shared/<key>/`` and gives it to the
same party's first stage in later runs, as a copy in the party's private folder. The key is a digest of
everything on the host side that decides the result (`inputs`); the stage compares its machine with the one
that computed (`Prepared.machine`), and computes for itself where they differ. Both sides check digests.

Nothing here can change a number or fail a run: whatever is missing or broken is computed anew, and
``<runs>/.shared`` may be removed at any time. No container sees it. Files are copied, never linked: a party
may write in its own folder, and must not be able to change what another run is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lada import provenance
from lada.config import RunConfig
from lada.errors import DataError, ExchangeError
from lada.faults import crash_point
from lada.manifest import FILE_NAME, FileEntry, read_manifest
from lada.records import Record, dump_jsonl, read_jsonl
from lada.rundir import RunDir, Stage, dump_json, sha256, write_atomic
from lada.space import STUTTERS

SHARED = ".shared"
RECORD = "prepared.json"
PREPARED = f"state/{RECORD}"
"""Name of the `Prepared` record in a commit; in a shared folder it is RECORD."""
TAKEN = "earlier run"
"""What a commit's manifest names among the stage's inputs where it was taken, with the record's digest."""
COMPUTED_FROM = ("tier", "shots", "seed", "template", "local", "generation", "lora", "numerics")
"""Parts of run.yaml, beside ``training.local`` and the party's model, that decide the result."""
STALE_SECONDS = 86_400.0
"""A half-written folder that has not changed for so long is nobody's."""


class Prepared(Record):
    """What a first stage computed, before its method added anything.

    Attributes:
        files: of its commit, with their digests.
        machine: what of the machine can change last bits.
        batches: tokens of a micro-batch and rows decoded side by side: an attempt that had too little memory
            computes with less than run.yaml says.
    """

    files: Annotated[tuple[FileEntry, ...], Field(strict=False, min_length=1)]
    machine: dict[str, str]
    batches: Annotated[tuple[int, int], Field(strict=False)]


def batches(config: RunConfig) -> tuple[int, int]:
    """`Prepared.batches` of a configuration."""
    return config.training.local.micro_tokens, config.generation.batch_size


def inputs(run: RunDir, config: RunConfig, stage: Stage) -> dict[str, Any] | None:
    """All on the host side that decides what a first stage computes; None where it is not known."""
    made = provenance.recorded(run)
    model = config.party(stage.party).model
    weights = made.get("weights", {}).get(model, "missing")
    if weights == "missing":
        return None
    read = [run.data(stage.party, part) for part in ("train", "test")] + [run.demo] * config.shots
    content = config.of_party(stage.party).model_dump(mode="json")
    own = config.party(stage.party).model_dump(mode="json", include={"attention", "prompt"})
    return {
        "party": stage.party,
        **{name: value for name, value in own.items() if value is not None},
        "stage": stage.name,
        "model": model,
        "weights": weights,
        "data": {path.name: sha256(path.read_bytes()) for path in read if path.is_file()},
        "config": {name: content[name] for name in COMPUTED_FROM},
        "training": content["training"]["local"],
        **{name: made.get(name) for name in ("code", "packages", "python", "machine", "image")},
    }


def shared_folder(run: RunDir, config: RunConfig, stage: Stage) -> Path | None:
    """Where results with these inputs are kept, whether there are any or not."""
    found = inputs(run, config, stage)
    return None if found is None else run.root.parent / SHARED / sha256(dump_json(found).encode())[:32]


def offer(run: RunDir, config: RunConfig, stage: Stage) -> str:
    """Give a first stage what an earlier run with the same inputs computed, if there is such a run.

    Returns:
        A remark for a person where something is wrong with it; else empty.
    """
    target = run.reuse(stage.party)
    try:
        _clear(target)
        source = shared_folder(run, config, stage)
        if source is None or not (source / RECORD).is_file():
            return ""
        target.mkdir()
        _copy(source, target, read_prepared(source))
    except DataError as error:
        _discard(source)
        _clear(target)
        return f"what an earlier run shared is ignored and removed: {error}"
    except OSError as error:
        _clear(target)
        return f"what an earlier run shared cannot be read: {error}"
    return ""


def share(run: RunDir, config: RunConfig, stage: Stage) -> str:
    """Keep what a first stage has computed and committed for later runs, unless it is there already.

    Returns:
        A remark for a person where that failed; else empty.
    """
    try:
        record = committed(run, stage)
        target = shared_folder(run, config, stage)
        if target is None or record is None or record.batches != batches(config):
            return ""
        if not target.exists():
            _keep(run.commit(stage), target, record, dump_json(inputs(run, config, stage)))
    except (OSError, DataError, ExchangeError) as error:
        return f"{stage} is not kept for later runs: {error}"
    return ""


def _keep(commit: Path, target: Path, record: Prepared, described: str) -> None:
    """Copy a record's files from a commit; the folder appears whole or not at all, the first one wins."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    _sweep(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        _copy(commit, temporary, record)
        write_atomic(temporary / "inputs.json", described)
        crash_point("reuse.copied")
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def was_taken(run: RunDir, stage: Stage) -> bool:
    """Whether a commit is what an earlier run computed."""
    try:
        return TAKEN in read_manifest(run.commit(stage), stage.party, stage.name).inputs
    except ExchangeError:  # changed since it was verified: whoever looks next will refuse it
        return False


def committed(run: RunDir, stage: Stage) -> Prepared | None:
    """The record in a verified commit; None where there is none, or where the method changed its files.

    Raises:
        DataError: when it is not what it should be.
    """
    manifest = read_manifest(run.commit(stage), stage.party, stage.name)
    entries = {entry.path: entry for entry in manifest.files}
    if PREPARED not in entries:
        return None
    record = read_prepared(run.commit(stage) / "state")
    return record if all(entries.get(one.path) == one for one in record.files) else None


def read_prepared(folder: Path) -> Prepared:
    """The record in a folder.

    Raises:
        DataError: when it is missing, is no record or names a file that it may not.
    """
    records = read_jsonl(Prepared, folder / RECORD)
    if len(records) != 1:
        raise DataError(f"{folder / RECORD}: {len(records)} records, expected 1")
    for entry in records[0].files:
        name = entry.path.removeprefix("state/")
        if not FILE_NAME.match(name) or name == RECORD:
            raise DataError(f"{folder / RECORD}: '{entry.path}' is not legal")
    return records[0]


def read_file(folder: Path, entry: FileEntry) -> bytes:
    """A file of a record.

    Raises:
        DataError: when it is not what the record says.
    """
    try:
        content = (folder / entry.path).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / entry.path}: cannot be read: {error.strerror}") from error
    if sha256(content) != entry.sha256:
        raise DataError(f"{folder / entry.path}: content is not what {RECORD} says")
    return content


def _copy(source: Path, target: Path, record: Prepared) -> None:
    """Copy a record's files, each checked on the way, the record last: without it a folder is nothing."""
    for entry in record.files:
        (target / entry.path).parent.mkdir(exist_ok=True)
        _copy_file(source / entry.path, target / entry.path, entry)
    write_atomic(target / RECORD, dump_jsonl([record]))


def _copy_file(source: Path, target: Path, entry: FileEntry) -> None:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in STUTTERS:
            raise
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    digest, left = hashlib.sha256(), entry.bytes
    with os.fdopen(descriptor, "rb") as read, target.open("xb") as write:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{source}: not a plain file")
        while chunk := read.read(min(left + 1, 1 << 20)):
            left -= len(chunk)
            digest.update(chunk)
            write.write(chunk)
            if left < 0:
                break
    if left or digest.hexdigest() != entry.sha256:
        raise DataError(f"{source}: content is not what {RECORD} says")


def _discard(folder: Path | None) -> None:
    """Remove a broken shared folder: out of sight first, another driver may look at it."""
    if folder is None:
        return
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        folder.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove a folder, or the link that a party put in its place."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(shared: Path) -> None:
    """Remove what killed drivers left half-written, long ago."""
    for path in shared.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
