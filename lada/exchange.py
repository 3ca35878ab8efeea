"""Commit once, publish idempotently, believe nothing unread: the shared folder through which parties speak.

A stage writes into a staging folder, manifest last, and renames the folder to its final name: the rename is
the only commit point and the first one wins. Publishing copies what is addressed to others into
``exchange/<sender>/<recipient or all>/<stage>/`` in the same way, and any attempt may finish it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from lada import provenance
from lada.config import SERVER, ExchangeOptions
from lada.errors import ExchangeError
from lada.faults import crash_point
from lada.payloads import (
    Origin,
    Schema,
    check_logits,
    check_metrics,
    check_records,
    check_tensors,
    tensor_schema,
)
from lada.records import (
    Prediction,
    Record,
    Response,
    Reward,
    SampleId,
    SampleLog,
    Trace,
    Verdict,
    WeightsHash,
    explain,
)
from lada.rundir import (
    PARTY_NAME,
    STAGE_NAME,
    RunDir,
    Stage,
    dump_json,
    parse_stage,
    sha256,
    sync_dir,
    write_synced,
)
from lada.space import STUTTERS
from lada.synthetic import QUESTIONS, VOTES, Synthetic, check_numbering, read_votes

MANIFEST = "manifest.json"
ALL = "all"
ADAPTER = "adapter.safetensors"
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
RESERVED: Mapping[str, str] = {
    "questions": f"public/all/{QUESTIONS}",
    "votes": f"public/server/{VOTES}",
}
"""Kinds that one role alone may send, under one name, to one recipient: the server its questions to all, a
client its votes to the server."""
R = TypeVar("R", bound=Record)


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


def exchange_root(run: RunDir) -> Path:
    """The folder that holds every message of a run."""
    return run.root / "exchange"


def message_dir(run: RunDir, sender: str, recipient: str, stage: str) -> Path:
    """Folder of one published message."""
    return outbox_dir(run, sender) / recipient / stage


def outbox_dir(run: RunDir, sender: str) -> Path:
    """Folder of all that a party publishes; nobody else writes in it."""
    return exchange_root(run) / sender


def inbox_dirs(run: RunDir, recipient: str, senders: Iterable[str]) -> list[Path]:
    """Folders of all that the named parties address to a recipient, or to all."""
    return [outbox_dir(run, sender) / address for sender in senders for address in (recipient, ALL)]


def make_exchange_dirs(run: RunDir, parties: Sequence[str]) -> list[str]:
    """Make the folder of each sender and recipient, so that a container can be shown those that it may see.

    A party may write in its own folder: a link or anything else in the place of a folder is moved to its
    ``.rejected/``, since whoever mounts it would see what it points to.

    Returns:
        One remark for each thing that was moved.
    """
    remarks = put_links_away(run, parties)
    for sender in parties:
        for recipient in (*parties, ALL):
            (outbox_dir(run, sender) / recipient).mkdir(parents=True, exist_ok=True)
    return remarks


def put_links_away(run: RunDir, parties: Sequence[str]) -> list[str]:
    """Move what stands in the place of an exchange folder and is none: nobody may be led elsewhere by it.

    Returns:
        One remark for each thing that was moved.
    """
    remarks = []
    for sender in parties:
        for folder in (outbox_dir(run, sender), *(outbox_dir(run, sender) / one for one in (*parties, ALL))):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                remarks.append(f"{folder} is no folder: moved to {_put_away(run, sender, folder)}")
    return remarks


def _put_away(run: RunDir, party: str, path: Path) -> Path:
    """Move what a party must not have made to its .rejected/, under a name that it did not choose."""
    rejected = _quarantine(run, party)
    target = rejected / f"exchange.{secrets.token_hex(4)}"
    path.rename(target)
    return target


def _quarantine(run: RunDir, party: str) -> Path:
    """A party's .rejected/, a folder and no link to one."""
    rejected = run.rejected(party)
    if rejected.is_symlink():
        rejected.unlink()
    rejected.mkdir(parents=True, exist_ok=True)
    return rejected


# -- writing


def commit(
    run: RunDir, stage: Stage, outbox: Outbox, *, attempt: str, run_id: str, inputs: Mapping[str, str]
) -> bool:
    """Write an outbox and make it the stage's commit.

    Returns:
        True when this attempt's work is the commit; False when another attempt had committed before, in
        which case this attempt's work is thrown away.

    Raises:
        ExchangeError: check ``once`` when this very attempt has committed already, ``name`` for a file
            or recipient name outside the grammar.
    """
    for recipient in outbox.public:
        if recipient != ALL and not PARTY_NAME.match(recipient):
            detail = f"there is no recipient '{recipient}'"
            raise ExchangeError("name", detail, party=stage.party, stage=stage.name)
    final = run.commit(stage)
    if run.is_committed(stage):
        return _lost(run, stage, attempt)
    staging = run.staging(stage, attempt)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    head = Manifest(
        run_id=run_id,
        run_hash=sha256(run.run_yaml.read_bytes()),
        party=stage.party,
        stage=stage.name,
        attempt=attempt,
        files=(),
    )
    entries = [_write(staging, stage, name, payload) for name, payload in sorted(outbox.private.items())]
    for recipient, files in sorted(outbox.public.items()):
        folder = staging / "public" / recipient
        folder.mkdir(parents=True)
        sent = [_write(folder, stage, name, payload) for name, payload in sorted(files.items())]
        _write_manifest(folder, head.model_copy(update={"recipient": recipient, "files": tuple(sent)}))
        entries += [entry.model_copy(update={"path": f"public/{recipient}/{entry.path}"}) for entry in sent]
    crash_point("commit.files-written")
    whole = head.model_copy(update={"inputs": dict(inputs), "files": tuple(entries)})
    _write_manifest(staging, whole)
    crash_point("commit.manifest-written")
    try:
        staging.rename(final)
    except OSError:
        if not run.is_committed(stage):
            raise
        shutil.rmtree(staging)
        return _lost(run, stage, attempt)
    sync_dir(final.parent)
    crash_point("commit.renamed")
    return True


def _lost(run: RunDir, stage: Stage, attempt: str) -> bool:
    manifest = read_manifest(run.commit(stage), stage.party, stage.name)
    if manifest.attempt == attempt:
        raise ExchangeError(
            "once", f"attempt {attempt} commits twice", party=stage.party, stage=stage.name, file=MANIFEST
        )
    return False


def _write(folder: Path, stage: Stage, name: str, payload: Payload) -> FileEntry:
    if not FILE_NAME.match(name.removeprefix("state/")):
        raise ExchangeError("name", f"'{name}' is not legal", party=stage.party, stage=stage.name, file=name)
    (folder / name).parent.mkdir(exist_ok=True)
    write_synced(folder / name, payload.data)
    digest = sha256(payload.data)
    return FileEntry(
        path=name, bytes=len(payload.data), sha256=digest, kind=payload.kind, items=payload.items
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_synced(folder / MANIFEST, dump_json(manifest.model_dump(mode="json")).encode())
    sync_dir(folder)


def publish(run: RunDir, stage: Stage) -> None:
    """Copy what a commit addresses to others into the exchange; safe to repeat, safe to be killed.

    Raises:
        ExchangeError: check ``once`` when something else stands in the exchange under this stage's name.
    """
    public = run.commit(stage) / "public"
    recipients = sorted(path.name for path in public.iterdir()) if public.is_dir() else []
    for recipient in recipients:
        source = public / recipient
        target = message_dir(run, stage.party, recipient, stage.name)
        if target.exists():
            if (target / MANIFEST).read_bytes() != (source / MANIFEST).read_bytes():
                raise ExchangeError(
                    "once",
                    "the exchange holds another message of this name",
                    party=stage.party,
                    stage=stage.name,
                    file=f"{recipient}/{MANIFEST}",
                )
            continue
        # Not the process's number: in containers of their own two attempts have the same one.
        temporary = target.with_name(f".{stage.name}.{secrets.token_hex(4)}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        crash_point("publish.copied")
        try:
            temporary.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():
                raise
            shutil.rmtree(temporary)
        sync_dir(target.parent)
        crash_point("publish.renamed")


# -- reading


def read_manifest(folder: Path, party: str, stage: str) -> Manifest:
    """The manifest of a commit or message.

    Raises:
        ExchangeError: check ``manifest``.
    """
    origin = Origin(party, stage, MANIFEST)
    content = _read_regular(folder / MANIFEST, origin, 64 * 2**20)
    try:
        return Manifest.model_validate_json(content)
    except ValueError as error:
        raise origin.error("manifest", explain(error)) from error


@dataclass(frozen=True)
class Message:
    """A verified message: its files were listed, whole, of legal size and of the stated sha256.

    Attributes:
        name: ``<sender>/<recipient>/<stage>``, as inputs are recorded.
        digest: sha256 of the manifest.
    """

    name: str
    digest: str
    manifest: Manifest
    contents: Mapping[str, bytes]

    def origin(self, name: str) -> Origin:
        """Who wrote a file of this message."""
        return Origin(self.manifest.party, self.manifest.stage, name)


def read_message(
    run: RunDir,
    sender: str,
    recipient: str,
    stage: str,
    *,
    limits: ExchangeOptions,
    run_hashes: Collection[str],
) -> Message:
    """Open and verify a published message.

    Raises:
        ExchangeError: naming party, stage, file and check.
    """
    folder = message_dir(run, sender, recipient, stage)
    manifest, contents = _read_folder(folder, sender, stage, limits=limits, run_hashes=run_hashes)
    if manifest.recipient != recipient:
        origin = Origin(sender, stage, MANIFEST)
        raise origin.error("recipient", f"addressed to {manifest.recipient}, found at {recipient}")
    digest = sha256((folder / MANIFEST).read_bytes())
    return Message(f"{sender}/{recipient}/{stage}", digest, manifest, contents)


def message_records(
    message: Message, name: str, kind: type[R], *, limits: ExchangeOptions, legal_ids: Collection[str] | None
) -> list[R]:
    """Records of one file of a message, checked; empty when the message has no such file."""
    if name not in message.contents:
        return []
    origin = message.origin(name)
    return check_records(kind, message.contents[name], origin, limits=limits, legal_ids=legal_ids)


def question_messages(run: RunDir, stages: Iterable[str]) -> list[str]:
    """Those of the given stages in which the server published synthetic questions, in the given order."""
    return [stage for stage in stages if (message_dir(run, SERVER, ALL, stage) / QUESTIONS).is_file()]


def message_questions(message: Message, *, limits: ExchangeOptions, first: int) -> list[Synthetic]:
    """The synthetic questions of a message of the server to all, checked.

    Args:
        first: how many were published in earlier stages.
    """
    found = message_records(message, QUESTIONS, Synthetic, limits=limits, legal_ids=None)
    check_numbering(found, message.origin(QUESTIONS), first=first)
    return found


def published_questions(
    run: RunDir, stages: Iterable[str], *, limits: ExchangeOptions, run_hashes: Collection[str]
) -> list[Synthetic]:
    """All synthetic questions that the server published in the given stages, in the order of publication.

    They are read from the exchange every time: what was published is on disk and nowhere else, so a
    restarted driver knows the same legal ids as one that never stopped.

    Args:
        stages: oldest first.

    Raises:
        ExchangeError: naming party, stage, file and check.
    """
    found: list[Synthetic] = []
    for stage in question_messages(run, stages):
        message = read_message(run, SERVER, ALL, stage, limits=limits, run_hashes=run_hashes)
        found += message_questions(message, limits=limits, first=len(found))
    return found


@dataclass(frozen=True)
class Legal:
    """What a stage may name: ids of the public set, and of earlier stages' synthetic questions, in order."""

    public: Collection[str]
    synthetic: Sequence[str] = ()

    @property
    def ids(self) -> set[str]:
        """All of them."""
        return {*self.public, *self.synthetic}


def check_commit(
    run: RunDir,
    stage: Stage,
    *,
    limits: ExchangeOptions,
    public_ids: Collection[str],
    synthetic_ids: Sequence[str] = (),
    adapter_schema: Schema | None = None,
) -> Manifest:
    """Verify a commit as its readers will: files, digests, schemas, ids, tensors.

    Args:
        synthetic_ids: of the questions that the server published in earlier stages (not in this one).

    Raises:
        ExchangeError: the commit must be rejected and the stage run again.
    """
    run_hashes = provenance.run_hashes(run)
    folder = run.commit(stage)
    manifest, contents = _read_folder(folder, stage.party, stage.name, limits=limits, run_hashes=run_hashes)
    legal = Legal(public_ids, synthetic_ids)
    for entry in manifest.files:
        origin = Origin(stage.party, stage.name, entry.path)
        check = _check_public if entry.path.startswith("public/") else _check_private
        check(entry, contents[entry.path], origin, limits, legal, adapter_schema)
    for recipient in sorted(_recipients(manifest)):
        _check_message(folder, stage, recipient, limits=limits, run_hashes=run_hashes)
    return manifest


def _check_public(
    entry: FileEntry,
    content: bytes,
    origin: Origin,
    limits: ExchangeOptions,
    legal: Legal,
    schema: Schema | None,
) -> None:
    _check_reserved(entry, origin)
    if entry.kind in RECORD_KINDS:
        kind = RECORD_KINDS[entry.kind]
        ids = None if kind is Synthetic else legal.ids
        records = check_records(kind, content, origin, limits=limits, legal_ids=ids)
        if len(records) != entry.items:
            raise origin.error("item-count", f"{len(records)} records, manifest says {entry.items}")
        written = [record for record in records if isinstance(record, Synthetic)]
        check_numbering(written, origin, first=len(legal.synthetic), public_ids=legal.public)
    elif entry.kind == "votes":
        count = len(legal.synthetic)
        read_votes(content, origin, num_questions=count, most=limits.max_items)
        if count != entry.items:
            raise origin.error("item-count", f"votes on {count} questions, manifest says {entry.items}")
    elif entry.kind == "logits":
        arrays = check_logits(content, origin, limits=limits, num_public=len(legal.ids))
        count = len(arrays["ce" if "ce" in arrays else "letters"])
        if count != entry.items:
            raise origin.error("item-count", f"{count} texts, manifest says {entry.items}")
    elif entry.kind != "adapters":
        raise origin.error("kind", f"'{entry.kind}' must not be published")
    elif entry.path.endswith(".safetensors"):
        check_tensors(content, origin, expected=schema)
    else:
        check_records(WeightsHash, content, origin, limits=limits)


def _check_reserved(entry: FileEntry, origin: Origin) -> None:
    """Questions come from the server alone, votes from clients alone, each under its own name."""
    name = entry.path.rsplit("/", 1)[1]
    for kind, path in RESERVED.items():
        role = SERVER if kind == "questions" else "a client"
        sent_by_role = (origin.party == SERVER) == (kind == "questions")
        if entry.kind == kind and not (entry.path == path and sent_by_role):
            raise origin.error("sender", f"'{kind}' may be sent by {role} as {path} alone")
        if entry.kind != kind and name == path.rsplit("/", 1)[1]:
            raise origin.error("kind", f"{name} must be of kind '{kind}', not '{entry.kind}'")


def _check_private(
    entry: FileEntry,
    content: bytes,
    origin: Origin,
    limits: ExchangeOptions,
    legal: Legal,
    schema: Schema | None,
) -> None:
    """What the host side reads of a party's own files to make metrics.csv; its state is its own affair."""
    if entry.kind == "metrics":
        check_metrics(content, origin)
    elif entry.kind == "diagnostics":
        check_records(SampleLog, content, origin, limits=limits, legal_ids=legal.ids)
    elif entry.kind == "predictions":
        check_records(Prediction, content, origin, limits=limits)


def _recipients(manifest: Manifest) -> set[str]:
    return {entry.path.split("/")[1] for entry in manifest.files if entry.path.startswith("public/")}


def _check_message(
    folder: Path, stage: Stage, recipient: str, *, limits: ExchangeOptions, run_hashes: Collection[str]
) -> None:
    """A message inside a commit must be whole and addressed to its folder."""
    message, _ = _read_folder(
        folder / "public" / recipient, stage.party, stage.name, limits=limits, run_hashes=run_hashes
    )
    origin = Origin(stage.party, stage.name, f"public/{recipient}/{MANIFEST}")
    if message.recipient != recipient:
        raise origin.error("recipient", f"addressed to {message.recipient}")


def published_schema(run: RunDir, stage: Stage) -> Schema | None:
    """Schema of the adapter that a commit publishes; later ones of the same party must equal it."""
    for path in sorted(run.commit(stage).glob(f"public/*/{ADAPTER}")):
        return tensor_schema(path.read_bytes(), Origin(stage.party, stage.name, path.name))
    return None


def reject(run: RunDir, stage: Stage, error: ExchangeError) -> Path:
    """Move a refused commit to the party's .rejected/, with the reason; withdraw what it published."""
    rejected = _quarantine(run, stage.party)
    # A folder of our own: nothing in the commit may decide where the reason is written.
    target = rejected / f"{stage.name}.{len(list(rejected.iterdir()))}"
    target.mkdir()
    (target / "reason.txt").write_text(f"{error}\n", encoding="utf-8")
    run.commit(stage).rename(target / "commit")
    withdraw(run, stage)
    return target


def withdraw(run: RunDir, stage: Stage) -> None:
    """Remove a stage's messages from the exchange; publishing the commit again restores them."""
    for folder in sorted((exchange_root(run) / stage.party).glob(f"*/{stage.name}")):
        if folder.parent.is_symlink():
            continue  # put there by the party: what it points to is not its
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink()


def is_published_whole(run: RunDir, stage: Stage) -> bool:
    """Whether the exchange holds exactly what the commit addressed to others, byte for byte."""
    public = run.commit(stage) / "public"
    for path in sorted(public.rglob("*")):
        if path.is_dir():
            continue
        recipient, name = path.relative_to(public).parts
        folder = message_dir(run, stage.party, recipient, stage.name)
        copy = folder / name
        if folder.is_symlink() or copy.is_symlink() or not copy.is_file():
            return False
        if copy.read_bytes() != path.read_bytes():
            return False
    sent = list((exchange_root(run) / stage.party).glob(f"*/{stage.name}"))
    if not all(folder.is_dir() for folder in sent):
        return False
    return sum(1 for folder in sent for _ in folder.iterdir()) == sum(
        1 for path in public.rglob("*") if path.is_file()
    )


def inbox_messages(
    run: RunDir, recipient: str, senders: Iterable[str], stages: Iterable[str]
) -> list[tuple[str, str, str]]:
    """(sender, recipient or ``all``, stage) of what was published to a party in the given earlier stages."""
    wanted = list(stages)
    return [
        (sender, address, stage)
        for stage in wanted
        for sender in senders
        for address in (recipient, ALL)
        if (message_dir(run, sender, address, stage) / MANIFEST).is_file()
    ]


def committed_stages(run: RunDir, party: str) -> list[Stage]:
    """Stages that a party has committed, in order of their names."""
    folder = run.party(party)
    if not folder.is_dir():
        return []
    names = sorted(path.parent.name for path in folder.glob(f"r*/{MANIFEST}"))
    return [parse_stage(name, party) for name in names if STAGE_NAME.match(name)]


def sweep(run: RunDir, party: str) -> None:
    """Remove what attempts of committed stages left: staging folders, resume points, half-copied messages.

    What the first stage was given to reuse goes too. Folders of stages without a commit stay: an attempt may
    be at work in them.
    """
    for stage in committed_stages(run, party):
        leftovers = [
            *(run.party(party) / ".staging").glob(f"{stage.name}.*"),
            run.resume(stage),
            run.reuse(party),
            *(exchange_root(run) / party).glob(f"*/.{stage.name}.*.tmp"),
        ]
        for leftover in leftovers:
            # A party may put a link in the place of a folder of its own; what it points to is not its.
            if not leftover.parent.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)


def _read_folder(
    folder: Path, party: str, stage: str, *, limits: ExchangeOptions, run_hashes: Collection[str]
) -> tuple[Manifest, dict[str, bytes]]:
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
    listed |= {f"public/{recipient}/{MANIFEST}" for recipient in _recipients(manifest)}
    found_files = _walk(folder, party, stage)
    for name in sorted(found_files - listed):
        raise Origin(party, stage, name).error("listed", "a file that the manifest does not list")
    contents: dict[str, bytes] = {}
    for entry in manifest.files:
        file_origin = Origin(party, stage, entry.path)
        if not FILE_NAME.match(entry.path.split("/")[-1]):
            raise file_origin.error("name", "not a legal file name")
        content = _read_regular(folder / entry.path, file_origin, limits.max_file_bytes)
        if len(content) != entry.bytes:
            raise file_origin.error("size", f"{len(content)} bytes, manifest says {entry.bytes}")
        if sha256(content) != entry.sha256:
            raise file_origin.error("sha256", "content is not what the manifest says")
        contents[entry.path] = content
    return manifest, contents


def _walk(folder: Path, party: str, stage: str) -> set[str]:
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


def _read_regular(path: Path, origin: Origin, cap: int) -> bytes:
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
        if status.st_size > cap:
            raise origin.error("size", f"{status.st_size} bytes; at most {cap} are legal")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
