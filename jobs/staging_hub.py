"""The hub, through huggingface_hub: which files a commit has, whether a token may have them, their bytes.

A token is read by that library (HF_TOKEN, or the file of `hf auth login`) and goes into request headers
alone: it is never printed, written or sent to where the hub redirects to.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from jobs.staging_lock import StagingError
from jobs.staging_refusals import Repository, endpoint, explained
from lada.errors import NoSpaceError
from lada.space import is_full

PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before a server that failed or is overloaded is asked again; then it is over."""
SECONDS = 30.0
"""For an answer about a repository."""


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
    with explained(repository):
        for pause in (*PAUSES, None):
            try:
                return _fetch_once(repository, revision, file, part, stopped)
            except OSError as error:  # huggingface_hub's are among these
                if is_full(error):
                    raise NoSpaceError(
                        f"{part.parent}: {error.strerror} while fetching {file.path}"
                    ) from None
                if pause is None or not _may_pass(error):
                    raise
            if stopped.wait(pause):
                raise StoppedError
    raise AssertionError("unreachable")


def _fetch_once(
    repository: Repository, revision: str, file: RemoteFile, part: Path, stopped: threading.Event
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    url = hf_hub_url(
        repository.name, file.path, repo_type=repository.kind, revision=revision, endpoint=endpoint()
    )
    # A compressed answer could not be gone on with.
    headers = build_hf_headers(library_name="lada", headers={"Accept-Encoding": "identity"})
    with part.open("ab") as raw:
        if raw.tell() > file.size:
            raw.truncate(0)
            raw.seek(0)
        http_get(
            url,
            cast(BinaryIO, _Stoppable(raw, stopped)),
            resume_size=raw.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.path,
        )
        raw.flush()
        os.fsync(raw.fileno())


class _Stoppable:
    """As much of a file as http_get uses; the next bytes after a stop end the download."""

    def __init__(self, raw: IO[bytes], stopped: threading.Event) -> None:
        self._raw, self._stopped = raw, stopped
        self.seek, self.tell, self.truncate = raw.seek, raw.tell, raw.truncate

    def write(self, chunk: bytes) -> int:
        if self._stopped.is_set():
            raise StoppedError
        return self._raw.write(chunk)


def _may_pass(error: OSError) -> bool:
    """Whether an error of the server is one that may be gone a moment later."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code >= 500
