"""What a scenario and a data set need, what of it is there already, and what is to be fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from jobs.staging_disk import HIDDEN, contents, locked, remembered, try_to_remember
from jobs.staging_hub import Listing, RemoteFile, check_access, look
from jobs.staging_lock import Lock, Locked, StagingError, differences, listed, write_locked
from jobs.staging_refusals import AccessError, Repository
from lada.model_facts import known_models
from lada.staged import Sources, read_record

Say = Callable[[str], None]
EMPTY_ENTRY = "its `revision` to null and its `files` to {} in configs/staging.lock.json"


@dataclass(frozen=True)
class Wanted:
    """A repository, the folder that its files belong in, and which of them: patterns, or paths."""

    repository: Repository
    folder: Path
    take: tuple[str, ...]

    @property
    def as_it_is(self) -> str:
        """How a person has a run use what is there, unverified."""
        if self.repository.kind == "model":
            return f"MODELS={self.folder.parent}"
        return f"DATA={self.folder / self.take[0]}"

    def takes(self, path: str) -> bool:
        """Whether a file of the repository is wanted; of a model's, those at the top."""
        if self.repository.kind == "dataset":
            return path in self.take
        return not path.startswith(".") and "/" not in path and any(fnmatch(path, one) for one in self.take)


@dataclass(frozen=True)
class Download:
    """A repository at one commit, and the files of it that are to be there."""

    wanted: Wanted
    revision: str
    files: tuple[RemoteFile, ...]
    locked: Locked

    @property
    def place(self) -> Path:
        """Where the files are gathered until all of them are there."""
        folder = self.wanted.folder
        return folder.parent / HIDDEN / f"{folder.name}@{self.revision[:12]}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def fetched(self) -> int:
        """Bytes that are on the disk already."""
        if not self.place.is_dir():
            return 0
        return sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file())


def wanted_models(models: Iterable[str], folder: Path, sources: Sources) -> list[Wanted]:
    """One sub-folder per model, named as `lada.runs.model_folder` looks for it."""
    facts = known_models()
    gated = {name: f"the {one.licence.name} licence" for name, one in facts.items() if one.licence.gated}
    return [
        Wanted(Repository("model", model, gated.get(model)), folder / model.rpartition("/")[2], sources.take)
        for model in models
    ]


def wanted_data(datasets: Iterable[str], folder: Path, sources: Sources) -> list[Wanted]:
    """One sub-folder per data set, named as `lada.staged.data_file` looks for it."""
    return [
        Wanted(
            Repository("dataset", sources.datasets[name].repository),
            folder / name,
            (sources.datasets[name].file,),
        )
        for name in datasets
    ]


def is_staged(one: Wanted, lock: Lock, *, full: bool = False) -> bool:
    """Whether a folder is there and what the lock says.

    Args:
        full: read all its bytes again.

    Raises:
        StagingError: it is there and something else; with the mend.
    """
    if not one.folder.is_dir():
        return False
    entry, record = lock.of(one.repository.kind, one.repository.name), read_record(one.folder)
    if not entry.files and (record is None or record.revision is None):
        raise StagingError(
            f"{one.folder} is there, but `make stage` did not put it there, and the lock knows no sha256 of "
            f"{one.repository}. Move it away; or take it as it is: {one.as_it_is}"
        )
    expected = entry.files or (locked(record.files) if record else {})
    found = remembered(one.folder, [name for name in expected if (one.folder / name).is_file()], full=full)
    lines = differences(expected, locked(found))
    if lines:
        raise StagingError(
            f"{one.folder} is not what the lock says of {one.repository}: {listed(lines)}. Move the folder "
            f"away, and `make stage` fetches what is pinned; to pin something else set {EMPTY_ENTRY}"
        )
    revision = entry.revision or (record.revision if record else None)
    if not entry.files:  # staged with another checkout's lock
        write_locked(one.repository.kind, one.repository.name, Locked(revision=revision, files=expected))
    if record is None or record.files != found or record.revision != revision:
        try_to_remember(one.folder, one.repository.name, revision, found)
    return True


def plan(missing: Sequence[Wanted], lock: Lock, branch: str, say: Say) -> list[Download]:
    """Ask the hub what is to be fetched, and whether it may be; nothing is written.

    Raises:
        AccessError: naming every licence and token that is missing.
        StagingError: the hub does not have what the lock says.
    """
    found, refused = [], []
    for one in missing:
        entry = lock.of(one.repository.kind, one.repository.name)
        try:
            listing = look(one.repository, entry.revision or branch)
            if listing.gated or one.repository.terms:
                say(
                    f"{one.repository} is gated ({one.repository.terms or 'see its page'}): asking for access"
                )
                check_access(one.repository)
        except AccessError as error:
            refused.append(str(error))
            continue
        found.append(Download(one, listing.revision, _chosen(one, listing, entry), entry))
    if refused:
        raise AccessError("nothing was fetched\n  " + "\n  ".join(refused))
    return found


def _chosen(one: Wanted, listing: Listing, entry: Locked) -> tuple[RemoteFile, ...]:
    """Files to fetch: those of the lock, or what is wanted of the listing.

    Raises:
        StagingError: the hub's listing contradicts the lock, or lacks what is needed.
    """
    by_path = {file.path: file for file in listing.files}
    lines = []
    for path, then in entry.files.items():
        now = by_path.get(path)
        if now is None or now.size != then.size or now.sha256 not in (None, then.sha256):
            lines.append(f"{path} is {'not there' if now is None else 'another file'}")
    if lines:
        raise StagingError(
            f"{one.repository.page} at {listing.revision[:12]} is not what the lock says: {listed(lines)}. "
            f"A commit cannot change: is HF_ENDPOINT a good mirror? To pin anew set {EMPTY_ENTRY}"
        )
    chosen = tuple(file for path, file in by_path.items() if path in entry.files)
    chosen = chosen or tuple(file for file in listing.files if one.takes(file.path))
    if one.repository.kind == "model" and not any(file.path.endswith(".safetensors") for file in chosen):
        raise StagingError(f"{one.repository.page} has no weights as safetensors")
    if not chosen:
        raise StagingError(f"{one.repository.page} has no {', '.join(one.take)} (configs/staging.yaml)")
    return chosen


def take(one: Wanted, lock: Lock, *, full: bool = False) -> str:
    """Look at a model that is on the disk already, and remember its hashes there where that is allowed.

    Returns:
        A line for a person: verified, or what could not be.

    Raises:
        StagingError: it is not what the lock says.
    """
    entry = lock.of(one.repository.kind, one.repository.name)
    found = remembered(one.folder, [name for name in contents(one.folder) if one.takes(name)], full=full)
    expected = {
        name: file for name, file in entry.files.items() if name in found or name.endswith(".safetensors")
    }
    lines = differences(expected, {name: file for name, file in locked(found).items() if name in expected})
    if lines:
        raise StagingError(
            f"{one.folder} is not what the lock says of {one.repository}: {listed(lines)}. Take another "
            f"copy; if this one is meant, set {EMPTY_ENTRY}"
        )
    kept = try_to_remember(one.folder, one.repository.name, entry.revision if expected else None, found)
    more = "" if kept else "; its hashes cannot be kept there, every new run reads the weights again"
    if not expected:
        return f"{one.repository}: in {one.folder}, unverified: the lock has no sha256 of it{more}"
    unknown = sorted(found.keys() - expected.keys())
    rest = f", not in the lock: {listed(unknown)}" if unknown else ""
    return f"{one.repository}: in {one.folder}, {len(expected)} files as in the lock{rest}{more}"
