"""The hub, through huggingface_hub: which files a commit has, whether a token may have them, their bytes.

A token is read by that library (HF_TOKEN, or the file of `hf auth login`) and goes into request headers
alone: it is never printed, written or sent to where the hub redirects to.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jobs.staging_lock import StagingError
from jobs.staging_refusals import Repository, endpoint, explained
from lada.errors import NoSpaceError
from lada.space import is_full

PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before a network or server that failed is tried again; after the last, it is over for this time."""
SECONDS = 30.0
"""For an answer about a repository."""
SILENT_SECONDS = 15.0
"""After which a download that sends nothing is asked for again."""
CHUNK = 1 << 20
"""Bytes that are written at a time."""


class StoppedError(Exception):
    """Somebody else's download failed; this one ends too."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it: sha256 where it is a large one, git's blob id for the others."""

    path: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Listing:
    """A commit of a repository and its files; ``gated``: a person has to agree to something first."""

    revision: str
    gated: bool
    files: tuple[RemoteFile, ...]


def look(repository: Repository, revision: str) -> Listing:
    """What a branch or a commit holds.

    Raises:
        AccessError: the hub wants a token, or another one.
        StagingError: no such repository or commit, or no answer.
        ConfigError: huggingface_hub is not installed.
    """
    with explained(repository):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), library_name="lada")
        ask = api.model_info if repository.kind == "model" else api.dataset_info
        found = ask(repository.name, revision=revision, timeout=SECONDS, files_metadata=True)
        if found.sha is None or found.siblings is None:
            raise StagingError(f"{repository.page} lists no commit and no files: is HF_ENDPOINT a hub?")
        files = [
            RemoteFile(
                one.rfilename,
                one.size if one.size is not None else one.lfs.size if one.lfs else 0,
                None if one.lfs is None else one.lfs.sha256,
                one.blob_id if one.lfs is None else None,
            )
            for one in found.siblings
        ]
        return Listing(found.sha, bool(found.gated), tuple(files))


def check_access(repository: Repository) -> None:
    """Ask whether the token in use may have a gated repository's files.

    Raises:
        AccessError: with the page to open and how to give a token.
    """
    with explained(repository):
        from huggingface_hub import HfApi

        HfApi(endpoint=endpoint(), library_name="lada").auth_check(repository.name, repo_type=repository.kind)


def fetch(
    repository: Repository, revision: str, file: RemoteFile, part: Path, *, stopped: threading.Event
) -> None:
    """Download a file, going on behind the bytes that ``part`` has.

    Choice: plain HTTP, not the hub's Xet protocol, which cannot go on within a file.

    Args:
        stopped: once set, the download ends with StoppedError.

    Raises:
        AccessError, StagingError: as `look`.
        NoSpaceError: the disk or a quota on it is full.
    """
    failures = 0
    with explained(repository):
        import httpx2

        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                return _fetch_once(repository, revision, file, part, stopped)
            except (OSError, httpx2.HTTPError) as error:
                if isinstance(error, OSError) and is_full(error):
                    raise NoSpaceError(
                        f"{part.parent}: {error.strerror} while fetching {file.path}"
                    ) from error
                if part.is_file() and part.stat().st_size > before:
                    failures = 0
                if failures == len(PAUSES) or not _may_pass(error):
                    raise
            if stopped.wait(PAUSES[failures]):
                raise StoppedError
            failures += 1


def _fetch_once(
    repository: Repository, revision: str, file: RemoteFile, part: Path, stopped: threading.Event
) -> None:
    import httpx2
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(
        repository.name, file.path, repo_type=repository.kind, revision=revision, endpoint=endpoint()
    )
    with part.open("ab") as raw:
        if raw.tell() > file.size:
            raw.truncate(0)
        have = part.stat().st_size
        # A compressed answer could not be gone on with.
        asked = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        headers = build_hf_headers(library_name="lada", headers=asked)
        if have < file.size:
            with get_session().stream("GET", url, headers=headers, timeout=SILENT_SECONDS) as answer:
                hf_raise_for_status(answer)
                if have and answer.status_code != httpx2.codes.PARTIAL_CONTENT:
                    raw.truncate(0)  # the server sends all of it again
                _write(answer.iter_bytes(CHUNK), raw, stopped)
        raw.flush()
        os.fsync(raw.fileno())
    if part.stat().st_size < file.size:
        raise httpx2.RemoteProtocolError(f"{file.path} broke off")


def _write(chunks: Iterable[bytes], raw: IO[bytes], stopped: threading.Event) -> None:
    for chunk in chunks:
        if stopped.is_set():
            raise StoppedError
        raw.write(chunk)


def _may_pass(error: Exception) -> bool:
    """Whether an error of the network or the server is one that may be gone a moment later."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ProxyError)
