"""Table II from made-up results of one scenario and setting, and its cells by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lada.matrix.rows import Row
from lada.report.layout import Entry, Table
from lada.report.tables import build_table
from tests.report.made_up import row, write_results

ARMS = {
    "standalone": {"method": "standalone"},
    "fedkd": {"method": "fedkd"},
    "lada": {"method": "lada"},
    "oracle": {"method": "lada", "label": "oracle: reads the answers"},
}
MATRIX: Mapping[str, Any] = {"scenarios": ["1"], "seeds": [0, 1], "arms": ARMS}


def built(folder: Path, rows: Sequence[Row], name: str = "table2", **changes: Any) -> Table:
    results, configs = write_results(folder, name, rows, matrix={**MATRIX, **changes})
    return build_table(name, "lab", results, configs)


def cells(values: Mapping[str, Sequence[float | None]], **changes: Any) -> list[Row]:
    """Arm -> accuracy per seed, None where there is none."""
    return [
        row(arm, value, seed=seed, **changes)
        for arm, found in values.items()
        for seed, value in enumerate(found)
        if value is not None
    ]


def entry(table: Table, arm: str, party: str = "client-1") -> Entry:
    return table.entries[("scenario 1", party), ("zero-shot", arm)]


def notes(table: Table, arm: str) -> list[str]:
    return [table.footnotes[note] for note in entry(table, arm).notes]
