"""What others sent, checked before it is used: names, sizes, digests, schema, ids, tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lada import provenance
from lada.config import SERVER, ExchangeOptions
from lada.exchange import ALL, message_dir
from lada.manifest import MANIFEST, RECORD_KINDS, FileEntry, Manifest, read_folder, recipients_of
from lada.payloads import (
    Origin,
    Schema,
    check_logits,
    check_metrics,
    check_records,
    check_tensors,
    tensor_schema,
)
from lada.records import Prediction, Record, SampleLog, WeightsHash
from lada.rundir import RunDir, Stage, sha256
from lada.synthetic import QUESTIONS, VOTES, Synthetic, check_numbering, read_votes

R = TypeVar("R", bound=Record)
ADAPTER = "adapter.safetensors"
RESERVED: Mapping[str, str] = {
    "questions": f"public/all/{QUESTIONS}",
    "votes": f"public/server/{VOTES}",
}
"""Kinds that one role alone may send, under one name, to one recipient: the server its questions to all, a
client its votes to the server."""


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
    manifest, contents = read_folder(folder, sender, stage, limits=limits, run_hashes=run_hashes)
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
    # Weights are as large as all of the driver's memory may be: no more of them at a time than must be.
    manifest, contents = read_folder(
        folder,
        stage.party,
        stage.name,
        limits=limits,
        run_hashes=run_hashes,
        wanted=lambda entry: entry.kind != "state" or _is_public(entry),
    )
    legal = Legal(public_ids, synthetic_ids)
    for entry in manifest.files:
        origin = Origin(stage.party, stage.name, entry.path)
        check = _check_public if _is_public(entry) else _check_private
        check(entry, contents.pop(entry.path, b""), origin, limits, legal, adapter_schema)
    for recipient in sorted(recipients_of(manifest)):
        _check_message(folder, stage, recipient, limits=limits, run_hashes=run_hashes)
    return manifest


def _is_public(entry: FileEntry) -> bool:
    return entry.path.startswith("public/")


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


def _check_message(
    folder: Path, stage: Stage, recipient: str, *, limits: ExchangeOptions, run_hashes: Collection[str]
) -> None:
    """A message inside a commit must be whole and addressed to its folder."""
    message, _ = read_folder(
        folder / "public" / recipient,
        stage.party,
        stage.name,
        limits=limits,
        run_hashes=run_hashes,
        wanted=lambda entry: False,
    )
    origin = Origin(stage.party, stage.name, f"public/{recipient}/{MANIFEST}")
    if message.recipient != recipient:
        raise origin.error("recipient", f"addressed to {message.recipient}")


def published_schema(run: RunDir, stage: Stage) -> Schema | None:
    """Schema of the adapter that a commit publishes; later ones of the same party must equal it."""
    for path in sorted(run.commit(stage).glob(f"public/*/{ADAPTER}")):
        return tensor_schema(path.read_bytes(), Origin(stage.party, stage.name, path.name))
    return None
