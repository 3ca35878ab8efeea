"""Why the hub gives something not out, in words that say what a person can do: licences, tokens, networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.staging_lock import Kind, StagingError
from lada.errors import ConfigError

TOKEN = (
    "A token: https://huggingface.co/settings/tokens (kind `Read`), then `.venv/bin/hf auth login` on this "
    "host, or HF_TOKEN in the environment of `make stage`"
)


class AccessError(StagingError):
    """A licence that nobody agreed to, or a token that is missing or not good."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, e.g. ``Repository("model", "Qwen/Qwen3-8B")``.

    Attributes:
        terms: what a person has to agree to first; None where nothing is known of that.
    """

    kind: Kind
    name: str
    terms: str | None = None

    @property
    def page(self) -> str:
        """Where it is asked for: on the hub, or on the mirror."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        return self.name


def endpoint() -> str:
    """The hub, or the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def has_token() -> bool:
    """Whether huggingface_hub finds a token."""
    from huggingface_hub import get_token

    return get_token() is not None


@contextmanager
def explained(repository: Repository) -> Iterator[None]:
    """Inside, what huggingface_hub raises becomes a StagingError that says what to do."""
    try:
        import httpx2
        from huggingface_hub import errors
    except ImportError as error:
        raise ConfigError(f"staging needs the package {error.name}: `make setup`, or `make stage`") from error
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise ConfigError(
            "HF_HUB_OFFLINE=1 forbids the hub; `make stage` lifts that for itself, MODELS=<folder> needs none"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StagingError(
            f"{repository.page} does not have the commit that configs/staging.lock.json pins. To take what "
            "it has now, set the entry's `revision` to null and its `files` to {}; numbers may change"
        ) from error
    except errors.GatedRepoError as error:
        raise AccessError(licence(repository)) from error
    except errors.HfHubHTTPError as error:
        raise _of_status(repository, error.response.status_code) from error
    except httpx2.HTTPError as error:
        raise StagingError(
            f"{endpoint()} cannot be reached ({type(error).__name__}: {error}). Stage where there is a "
            "network (proxy: HTTPS_PROXY=, mirror: HF_ENDPOINT=); the same command goes on from here"
        ) from error
    except OSError as error:
        if type(error) is not OSError:
            raise
        raise StagingError(f"{repository.page}: {str(error).splitlines()[0]}") from error


def _of_status(repository: Repository, status: int) -> StagingError:
    if status in (401, 403) and repository.terms and not has_token():
        return AccessError(licence(repository))
    if status in (401, 403) and has_token():
        return AccessError(
            f"{repository.page}: the hub refuses this token ({status}). Is it still valid, may it read (a "
            "fine-grained one also needs `Read access to contents of all public gated repos`), and is it "
            "of the account that agreed to the licence?"
        )
    if status == 401:
        return AccessError(
            f"{repository.page}: the hub wants a token (401), or there is no such repository. {TOKEN}"
        )
    if status == 404:
        return StagingError(f"{repository.page}: the hub has no such repository (404)")
    return StagingError(
        f"{repository.page}: the hub answered {status}; the same command goes on where this one ended"
    )


def licence(repository: Repository) -> str:
    """What a person has to do before the hub gives out a gated repository; never on a mirror."""
    terms = repository.terms or "its licence"
    page = f"https://huggingface.co/{repository.name}"
    return f"{repository} is gated: open {page}, log in, agree to {terms}, wait for the grant. {TOKEN}"
