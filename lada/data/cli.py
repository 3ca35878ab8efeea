"""``python -m lada data parse``: every record of a file with what the loader made of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lada.data import aqua_rat, cot_collection, mathinstruct
from lada.data.parsing import ParsedRow
from lada.errors import ConfigError, DataError

FORMATS: dict[str, Callable[[Path], Iterator[ParsedRow]]] = {
    "mathinstruct": mathinstruct.parse,
    "cot_collection": cot_collection.parse,
    "aqua_rat": aqua_rat.parse,
}


def write_parsed(path: Path, name: str, out: Path) -> dict[str, int]:
    """Write one JSON line per record of ``path``, in file order.

    Fields: row, status, reason, question, options, answer. ``out`` appears whole or not at all.

    Args:
        path: the dataset file. name: its format, a key of `FORMATS`. out: the file to write.

    Returns:
        How many rows were ``accepted``, and how many dropped for each reason, by falling count.

    Raises:
        ConfigError: when there is no such format, or ``out`` is ``path``.
        DataError: when ``path`` cannot be read as one, or ``out`` cannot be written.
    """
    if name not in FORMATS:
        raise ConfigError(f"format '{name}' does not exist; legal: {', '.join(sorted(FORMATS))}")
    if out.exists() and path.exists() and out.samefile(path):
        raise ConfigError(f"{out}: OUT is the dataset file itself")
    counts: Counter[str] = Counter()
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("w", encoding="utf-8", newline="\n") as stream:
            for row in FORMATS[name](path):
                counts[row.reason or row.status] += 1
                stream.write(_line(row))
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error
    finally:
        if staged.exists():
            staged.unlink()
    return dict(counts.most_common())


def _line(row: ParsedRow) -> str:
    fields = ("row", "status", "reason", "question", "options", "answer")
    return json.dumps({name: getattr(row, name) for name in fields}, ensure_ascii=False) + "\n"
