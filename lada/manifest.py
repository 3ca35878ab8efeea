"""What a stage hands over, and the manifest that says so: file names, kinds, digests; read without trust."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lada.config import ExchangeOptions
from lada.payloads import Origin
from lada.records import Record, Response, Reward, SampleId, Trace, Verdict, explain
from lada.rundir import sha256
from lada.space import STUTTERS
from lada.synthetic import Synthetic

MANIFEST = "manifest.json"
FILE_NAME = re.compile(r"^[a-z][a-z0-9_]{0,63}\.(jsonl|json|safetensors)\Z")
RECORD_KINDS: Mapping[str, type[Record]] = {
    "ids": SampleId,
    "responses": Response,
    "rewards": Reward,
    "questions": Synthetic,
    "traces": Trace,
    "verdicts": Verdict,
}
"""Kinds of messages that are JSON lines, and their record; ``adapters``, ``votes``, ``logits`` are arrays."""

Kind = Literal[
    "ids",
    "responses",
    "rewards",
    "questions",
    "traces",
    "verdicts",
    "votes",
    "logits",
    "adapters",
    "state",
    "predictions",
    "diagnostics",
    "metrics",
]


@dataclass(frozen=True)
class Payload:
    """One file of an outbox: its kind (for the byte account), how many items it holds, its bytes."""

    kind: Kind
    items: int
    data: bytes


@dataclass
class Outbox:
    """What a stage leaves behind.

    Attributes:
        public: recipient (a party or ``all``) -> file name -> payload; this is published.
        private: file name, under ``state/`` or not -> payload: seen by nobody else.
    """

    public: dict[str, dict[str, Payload]] = field(default_factory=dict)
    private: dict[str, Payload] = field(default_factory=dict)

    def send(self, recipient: str, name: str, payload: Payload) -> None:
        """Address a file to a party or to ``all``."""
        self.public.setdefault(recipient, {})[name] = payload


class FileEntry(Record):
    """A file in a manifest; ``path`` is relative to the manifest's folder."""

    path: Annotated[str, Field(pattern=r"^(state/|public/(server|client-[1-9][0-9]?|all)/)?[a-z0-9_.]+$")]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    kind: Kind
    items: Annotated[int, Field(ge=0)]


class Manifest(Record):
    """Table of contents of a commit (``recipient`` None) or of a message.

    Attributes:
        run_hash: sha256 of run.yaml as it was for this stage.
        inputs: message -> sha256 of its manifest, for everything that the stage read.
    """

    run_id: str
    run_hash: str
    party: str
    stage: str
    attempt: str
    recipient: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    files: Annotated[tuple[FileEntry, ...], Field(strict=False)]


def read_manifest(folder: Path, party: str, stage: str) -> Manifest:
    """The manifest of a commit or message.

    Raises:
        ExchangeError: check ``manifest``.
    """
    origin = Origin(party, stage, MANIFEST)
    content = read_regular(folder / MANIFEST, origin, 64 * 2**20)
    try:
        return Manifest.model_validate_json(content)
    except ValueError as error:
        raise origin.error("manifest", explain(error)) from error


def read_folder(
    folder: Path,
    party: str,
    stage: str,
    *,
    limits: ExchangeOptions,
    run_hashes: Collection[str],
    wanted: Callable[[FileEntry], bool] = lambda entry: True,
) -> tuple[Manifest, dict[str, bytes]]:
    """A folder's manifest and files, all that it lists and nothing else, of the stated size and sha256.

    Args:
        run_hashes: of run.yaml; the manifest names one of them.
        wanted: files whose content is returned, none above ``limits.max_file_bytes``; the others, such as a
            party's own model, may have any size and are verified a block at a time.

    Raises:
        ExchangeError: naming the file and the check that failed.
    """
    origin = Origin(party, stage, MANIFEST)
    if folder.is_symlink():
        raise origin.error("file-type", "the folder is a link")
    manifest = read_manifest(folder, party, stage)
    for check, found, expected in (
        ("party", manifest.party, [party]),
        ("stage", manifest.stage, [stage]),
        ("run-hash", manifest.run_hash, run_hashes),
    ):
        if found not in expected:
            raise origin.error(check, f"manifest says '{found}', expected {' or '.join(sorted(expected))}")
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    listed |= {f"public/{recipient}/{MANIFEST}" for recipient in recipients_of(manifest)}
    found_files = list_files(folder, party, stage)
    for name in sorted(found_files - listed):
        raise Origin(party, stage, name).error("listed", "a file that the manifest does not list")
    contents: dict[str, bytes] = {}
    for entry in manifest.files:
        file_origin = Origin(party, stage, entry.path)
        if not FILE_NAME.match(entry.path.split("/")[-1]):
            raise file_origin.error("name", "not a legal file name")
        path = folder / entry.path
        if wanted(entry):
            content = read_regular(path, file_origin, limits.max_file_bytes)
            contents[entry.path] = content
            size, digest = len(content), sha256(content)
        else:
            size, digest = measure_regular(path, file_origin)
        _check_listed(entry, size, digest, file_origin)
    return manifest, contents


def _check_listed(entry: FileEntry, size: int, digest: str, origin: Origin) -> None:
    if size != entry.bytes:
        raise origin.error("size", f"{size} bytes, manifest says {entry.bytes}")
    if digest != entry.sha256:
        raise origin.error("sha256", "content is not what the manifest says")


def recipients_of(manifest: Manifest) -> set[str]:
    """Parties, or ``all``, to whom a commit addresses something."""
    return {entry.path.split("/")[1] for entry in manifest.files if entry.path.startswith("public/")}


def list_files(folder: Path, party: str, stage: str) -> set[str]:
    """Every file below a folder; anything but plain files and folders is refused."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise Origin(party, stage, relative).error("file-type", "not a plain file")
        found.add(relative)
    return found


def read_regular(path: Path, origin: Origin, cap: int) -> bytes:
    """Content of a plain file with one name and at most ``cap`` bytes; no link is followed, nothing waits.

    Raises:
        ExchangeError: it is none, or cannot be opened.
        OSError: the file server failed.
    """
    with _regular(path, origin) as file:
        size = os.fstat(file.fileno()).st_size
        if size > cap:
            raise origin.error("size", f"{size} bytes; at most {cap} are legal")
        return file.read()


def measure_regular(path: Path, origin: Origin) -> tuple[int, str]:
    """Size and sha256 of a plain file with one name, however large.

    Raises:
        ExchangeError, OSError: see `read_regular`.
    """
    with _regular(path, origin) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


@contextlib.contextmanager
def _regular(path: Path, origin: Origin) -> Iterator[BufferedReader]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in STUTTERS:
            raise  # the file server's fault, not the party's
        raise origin.error("open", error.strerror or "cannot be opened") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise origin.error("file-type", "not a plain file with one name")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
