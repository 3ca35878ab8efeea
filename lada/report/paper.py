"""What the paper prints, as data, and where it contradicts itself.

``paper/<table>.csv`` holds the figures of Tables I to VI, and those of Figures 4 and 5 that the text states.
The columns are `PRINTED`: dataset is ``math`` (MathInstruct) or ``cot`` (CoT-Collection), arm a key of the
matrices or ``improvement``, party ``mean`` the printed average. Values are per cent, points, or MB.
``paper/contradictions.yaml`` says which of them disagree.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

from lada.layers import read_yaml

FIGURES = Path(__file__).parent / "paper"
PRINTED = ("table", "dataset", "scenario", "shots", "arm", "party", "at", "value")
CELL = PRINTED[1:-1]
FAMILIES = MappingProxyType(
    {
        "lab-math": "math",
        "mathinstruct": "math",
        "aqua-rat": "math",
        "lab-cot": "cot",
        "cot-collection": "cot",
    }
)
"""Dataset -> the paper's dataset that it is, or stands in for."""

RUNS = "{runs}"
"""Stands in a text for the weights that the measured runs have."""


@dataclass(frozen=True)
class Contradiction:
    """A place where the paper disagrees with itself, or a printed figure that means something else.

    Attributes:
        where: column of `PRINTED` -> values; empty: the whole table.
        text: for a reader of the table.
    """

    table: str
    text: str
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def concerns(self, cell: Mapping[str, str]) -> bool:
        """Whether it is about this cell of its table."""
        return all(cell.get(name, "") in values for name, values in self.where.items())


@cache
def printed(table: str) -> Mapping[tuple[str, ...], str]:
    """(dataset, scenario, shots, arm, party, at) -> what the paper prints; an unknown table is empty."""
    path = FIGURES / f"{table}.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {tuple(row[name] for name in CELL): row["value"] for row in rows}
    assert len(found) == len(rows), f"{path}: a cell stands twice"
    return MappingProxyType(found)


def printed_number(table: str, cell: Mapping[str, str]) -> float | None:
    """A printed figure by its cell; parts that ``cell`` does not name are empty. None: not printed."""
    text = printed(table).get(tuple(cell.get(name, "") for name in CELL))
    return None if text is None else float(text)


def remarks(table: str) -> list[str]:
    """Contradictions that concern a table as a whole."""
    return [one.text for one in FOOTNOTES if one.table == table and not one.where]


def footnotes(table: str, cell: Mapping[str, str], weights: Callable[[], str] = str) -> list[str]:
    """Contradictions that concern one cell.

    Args:
        weights: gives those of the runs beside the printed figure, empty where they are unknown; asked where
            a text states them.
    """
    found = [one.text for one in FOOTNOTES if one.table == table and one.where and one.concerns(cell)]
    return [text.replace(RUNS, _of_runs(weights())) if RUNS in text else text for text in found]


def _of_runs(weights: str) -> str:
    return f"; runs here have {weights}" if weights else ""


def _contradictions() -> tuple[Contradiction, ...]:
    content = read_yaml(FIGURES / "contradictions.yaml")
    return tuple(
        Contradiction(
            table, one["text"], {name: tuple(values) for name, values in one.get("where", {}).items()}
        )
        for table, found in content.items()
        for one in found
    )


FOOTNOTES = _contradictions()
