"""Rows of a matrix's results: one number of one run each, written and read as CSV. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from lada.config import SERVER
from lada.tabular import read_records, write_csv

ASIDE = ("adapters", "rewards")
"""Kinds that are counted apart from what methods say to each other (architecture, section 3)."""


@dataclass(frozen=True, order=True)
class Row:
    """One number of one run.

    Attributes:
        arm: key in the matrix. at: the point of its grid, empty without one.
        method: as results call it: host and guest, and ``-oracle`` where the answers were opened.
    """

    tier: str
    scenario: str
    dataset: str
    shots: int
    arm: str
    at: str
    method: str
    seed: int
    party: str
    model: str
    round: int
    metric: str
    value: float


COLUMNS = tuple(field.name for field in fields(Row))
TEXTS = ("tier", "scenario", "dataset", "arm", "at", "method", "party", "model", "metric")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Long form; values with 9 significant digits."""
    write_csv(path, COLUMNS, ((*astuple(row)[:-1], f"{row.value:.9g}") for row in rows))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote.

    Raises:
        DataError: the file is not there or has other columns.
    """
    return [_row(row) for row in read_records(path, COLUMNS)]


def _row(row: Mapping[str, str]) -> Row:
    shots, seed, number = int(row["shots"]), int(row["seed"]), int(row["round"])
    texts = {name: row[name] for name in TEXTS}
    return Row(**texts, shots=shots, seed=seed, round=number, value=float(row["value"]))


def bytes_by_direction(rows: Iterable[Row], clients: int) -> dict[str, float]:
    """Bytes of one run as sent, per recipient: ``up`` (clients), ``down`` (server), ``aside`` (`ASIDE`)."""
    totals = dict.fromkeys(("up", "down", "aside"), 0.0)
    for row in rows:
        if row.metric.startswith("bytes_sent/"):
            _, _, recipient, kind = row.metric.split("/")
            way = "aside" if kind in ASIDE else "down" if row.party == SERVER else "up"
            totals[way] += row.value * (clients if recipient == "all" else 1)
    return totals
