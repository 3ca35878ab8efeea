"""What `make stage` left for runs that see no network: models and data by name, each with what it is made of.

A staged folder holds a record of its files, so that nobody has to read hundreds of gigabytes to know them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from lada.config import Options, PartyOptions
from lada.errors import ConfigError
from lada.layers import CONFIGS, read_yaml, shipped, validate

RECORD = ".staged.json"
REHEARSED = ".rehearsal.json"
"""In a model's folder: its weights are random, of a dress rehearsal (`lada.rehearsal`)."""
SOURCES = CONFIGS / "staging.yaml"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class DataSource(Options):
    """The repository and the file in it that a data set is read from."""

    repository: str
    file: str


class Sources(Options):
    """configs/staging.yaml.

    Attributes:
        branch: resolved to a commit the first time a repository is staged.
        take: patterns of the files that are taken of a model's repository.
    """

    branch: str = "main"
    take: tuple[str, ...]
    datasets: dict[str, DataSource]


class StagedFile(Options):
    """A file as it was when its bytes were hashed; while size and time agree they are not hashed again."""

    size: Annotated[int, Field(ge=0)]
    sha256: Digest
    mtime_ns: int


class Staged(Options):
    """The record in a staged folder.

    Attributes:
        repository: hub's name.
        revision: commit that the files are; None: they were on disk already, and nobody knows.
        files: by path in the folder.
    """

    repository: str
    revision: Revision | None
    files: dict[str, StagedFile]


def models_of(scenarios: Iterable[str]) -> list[str]:
    """Models of the scenarios' parties, by hub's name, each once.

    Raises:
        ConfigError: no such scenario, or its file names no parties.
    """
    found: dict[str, None] = {}
    for name in scenarios:
        path = shipped("scenarios", name)
        for content in read_yaml(path).get("parties", []):
            if not isinstance(content, dict):
                raise ConfigError(
                    f"{path}: a party is a mapping with a name and a model, not {content!r:.80}"
                )
            party = validate(PartyOptions, content, {key: str(path) for key in content})
            found.setdefault(party.model)
    return list(found)


def read_sources(path: Path = SOURCES) -> Sources:
    """What is staged from where.

    Raises:
        ConfigError: the file is not as it should be; names key and legal values.
    """
    content = read_yaml(path)
    return validate(Sources, content, {key: str(path) for key in content})


def read_record(folder: Path) -> Staged | None:
    """A folder's record; None where there is none that can be read."""
    try:
        return Staged.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def is_rehearsed(folder: Path) -> bool:
    """Whether a model's folder holds one that was made for a rehearsal."""
    return (folder / REHEARSED).is_file()


def is_unchanged(path: Path, known: StagedFile) -> bool:
    """Whether a file has the size and the time of change that it had when it was hashed."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns)


def file_digest(path: Path) -> str:
    """sha256 of a file of any size.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(folder: Path) -> str | None:
    """What a model's weights are: sha256 of its one file, or of the list of its files' names and sha256.

    Files of a record that agrees with the disk are not read again.

    Returns:
        None where the folder has no weights.
    """
    paths = sorted(folder.glob("*.safetensors"))
    record = read_record(folder)
    known = {} if record is None else record.files
    digests = {
        path.name: known[path.name].sha256
        if path.name in known and is_unchanged(path, known[path.name])
        else file_digest(path)
        for path in paths
    }
    if list(digests) == ["model.safetensors"]:
        return digests["model.safetensors"]
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(listed.encode()).hexdigest() if digests else None


def data_file(dataset: str) -> Path | None:
    """File of a staged data set in the folder that LADA_DATA names; None where it is not there."""
    root, source = os.environ.get("LADA_DATA"), read_sources().datasets.get(dataset)
    if not root or source is None:
        return None
    path = Path(root) / dataset / source.file
    return path if path.is_file() else None
