"""CSV files, written whole or not at all and read with their columns checked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lada.errors import DataError
from lada.rundir import write_atomic


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and one line per row, ended by newlines alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file, whole or not at all."""
    write_atomic(path, csv_text(columns, rows))


def read_csv(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of a CSV file; an empty file has neither.

    Raises:
        DataError: the file cannot be read, is no text or no CSV, or a row has not one field per column; says
            which line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    reader = csv.reader(io.StringIO(_text(content, path), newline=""))
    try:
        columns, *rows = list(reader) or [[]]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV: {error}") from error
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise DataError(f"{path}, line {number}: {len(row)} fields, expected {len(columns)}")
    return tuple(columns), rows


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: no text: byte {error.start} is not UTF-8") from error


def read_records(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows by column of a file that must have exactly these columns.

    Raises:
        DataError: see `read_csv`; the file has other columns.
    """
    found, rows = read_csv(path)
    if found != tuple(columns):
        raise DataError(f"{path}: columns {list(found)}, expected {list(columns)}")
    return [dict(zip(columns, row, strict=True)) for row in rows]
