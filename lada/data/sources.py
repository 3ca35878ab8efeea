"""Local dataset files: plain or gzip, JSON streamed record by record, JSON lines. Nothing is downloaded."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import ijson

from lada.data import Request
from lada.errors import ConfigError, DataError

_BOM = b"\xef\xbb\xbf"
_KINDS = {b"[": "an array", b"{": "an object"}


def local_file(request: Request) -> Path:
    """The file that a run names.

    Raises:
        ConfigError: when the run names none. DataError: when it does not exist.
    """
    if request.file is None:
        raise ConfigError(
            f"dataset '{request.dataset}' is read from a local file: give DATA=<file>, or stage it with "
            f"`make stage DATASET={request.dataset}` (without a cluster file LADA_DATA names the folder)"
        )
    if not request.file.is_file():
        raise DataError(f"{request.file}: no such file (dataset '{request.dataset}'): give DATA=<file>")
    return request.file


def array_records(path: Path) -> Iterator[tuple[int | str, object]]:
    """(index, element) of a file that holds one JSON array, streamed.

    Raises:
        DataError: missing or unreadable file, not JSON, cut off, or no array at the top.
    """
    with _opened(path) as stream:
        _expect(path, stream, b"[")
        yield from enumerate(ijson.items(stream, "item"))


def object_records(path: Path) -> Iterator[tuple[int | str, object]]:
    """(key, value) of a file that holds one JSON object, streamed; errors as `array_records`."""
    with _opened(path) as stream:
        _expect(path, stream, b"{")
        yield from ijson.kvitems(stream, "")


def line_records(path: Path) -> Iterator[tuple[int | str, object]]:
    """(index, object) of a JSON lines file; blank lines are skipped and not counted.

    Raises:
        DataError: as `array_records`; a line that is no JSON object names its number.
    """
    index = 0
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON, or cut off: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: holds a {type(record).__name__}, not an object")
            yield index, record
            index += 1
    if not index:
        raise DataError(f"{path}: the file is empty")


def _expect(path: Path, stream: IO[bytes], first: bytes) -> None:
    start = stream.tell()
    head = stream.read(1)
    while head.isspace():
        head = stream.read(1)
    stream.seek(start)
    if not head:
        raise DataError(f"{path}: the file is empty")
    if head != first:
        found = _KINDS.get(head, "neither an array nor an object")
        raise DataError(f"{path}: the top level of the JSON is {found}; it should be {_KINDS[first]}")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, past a byte order mark; what goes wrong on the way is a `DataError`."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb") as stream:
            if stream.read(3) != _BOM:
                stream.seek(0)
            yield stream
    except ijson.JSONError as error:
        what = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not JSON, or cut off: {what}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
