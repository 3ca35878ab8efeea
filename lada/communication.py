"""Bytes that parties send each other, by kind and direction, in three measures.

``once``: files as they lie in the exchange, a message to all counted once. ``unicast``: the same files, a
message to all counted once per recipient. ``content``: what the files hold, a message to all counted once:
texts in UTF-8, numbers in binary, `ID_BYTES` for an id (baselines, section 10). What ``once`` has more than
that is JSON and the heads of tensor files: at most `RECORD_FRAME` bytes a record, escaped characters apart,
and `FILE_FRAME` a tensor.

Choice: only what a method says counts. A message's manifest (who, when, digests) is the exchange's own and is
in no measure, nor is what a container reads of the run's description.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lada.config import SERVER
from lada.exchange import ALL
from lada.manifest import FileEntry, Manifest
from lada.rundir import Stage

Measure = Literal["once", "unicast", "content"]
ID_BYTES = 4
RECORD_FRAME = 256
"""Bytes that JSON adds to a record at most: names, quotes, an id of at most 128 characters."""
FILE_FRAME = 256
"""Bytes that a tensor file adds per tensor at most."""
DIGEST_BYTES = 32
_HEAD_SIZE = 8


def traffic(
    folder: Path, manifest: Manifest, stage: Stage, parties: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """(metric, bytes) of every file that a commit addresses to others.

    Args:
        folder: of the commit.
        parties: all of the run; a message to all has one recipient less.
    """
    direction = "down" if stage.party == SERVER else "up"
    for entry in manifest.files:
        if not entry.path.startswith("public/"):
            continue
        copies = len(parties) - 1 if entry.path.split("/")[1] == ALL else 1
        measured = {
            "once": entry.bytes,
            "unicast": copies * entry.bytes,
            "content": content_bytes(folder / entry.path, entry),
        }
        for measure, value in measured.items():
            yield f"bytes_{measure}/{direction}/{entry.kind}", value


def content_bytes(path: Path, entry: FileEntry) -> int:
    """Bytes of what a published file holds, without what its format adds."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return entry.bytes - _HEAD_SIZE - int.from_bytes(file.read(_HEAD_SIZE), "little")
    if path.suffix == ".json":
        return DIGEST_BYTES  # the hash that stands for a weight delta
    size = _SIZES[entry.kind]
    with path.open(encoding="utf-8", newline="\n") as lines:
        return sum(ID_BYTES + size(json.loads(line)) for line in lines)


def _text(record: Mapping[str, Any], *names: str) -> int:
    return sum(len(str(record[name]).encode()) for name in names)


def _question(record: Mapping[str, Any]) -> int:
    return _text(record, "question", "rationale") + sum(len(one.encode()) for one in record["options"]) + 1


_SIZES: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "ids": lambda record: 0,
    "responses": lambda record: _text(record, "text") + 4 * ("confidence" in record),
    "rewards": lambda record: 1 + 4 * (len(record) - 2),
    "questions": _question,
    "traces": lambda record: _text(record, "text") + 1 + 1 + 4,
    "verdicts": lambda record: 1 + 1,
}
"""Bytes of a record beside its id: float32 numbers, a byte for a letter, a place, a partner, a yes or no."""
