"""Which cell of which table is meant: ``table2/scenario 1/zero-shot/client-1/lada``.

A part is called as the files name it or as the tables show it: ``lada`` or ``lada (= fedkd+lada)``. A table
of rates has its cells by the names of the table beside which it stands: ``table2-unparsed/scenario 1/…``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lada.errors import ConfigError
from lada.report.arrange import HEADS, NAMED, parts_of
from lada.report.build import RATES, block_name
from lada.report.compare import Cell
from lada.report.tables import SPECS


def table_and_metric(text: str, name: str) -> tuple[str, str]:
    """The table of `SPECS` that a name means, and of which metric: accuracy or one of `RATES`.

    Raises:
        ConfigError: there is no such table.
    """
    named = {(table, metric): block_name(table, metric) for table in SPECS for metric in RATES}
    known = {**{table: (table, "accuracy") for table in SPECS}, **{name: key for key, name in named.items()}}
    if name not in known:
        endings = " or ".join(block_name("", metric) for metric in RATES)
        raise ConfigError(
            f"'{text}': no table '{name}'; legal: table1, {', '.join(SPECS)}; or with {endings}"
        )
    return known[name]


def find_cell(text: str, cells: Sequence[Cell], parts: Sequence[str], labels: Mapping[str, str]) -> Cell:
    """The one cell that parts name, axis by axis.

    Args:
        labels: part -> how tables show it.

    Raises:
        ConfigError: there is no such cell; names what the first wrong part can be.
    """
    left, cells = list(parts), list(cells)
    for axis in NAMED:
        legal = list(dict.fromkeys(parts_of(cell)[axis] for cell in cells))
        meant = _meant(left[0], legal, labels) if left else None
        if meant is not None:
            part = meant
            left.pop(0)
        elif len(legal) == 1 and not (left and left[0].startswith(f"{axis} ")):
            part = legal[0]
        else:
            said = f"'{left[0]}' is none" if left else "a part is missing"
            raise ConfigError(f"'{text}': {HEADS[axis].lower()}: {said}; legal: {', '.join(legal)}")
        cells = [cell for cell in cells if parts_of(cell)[axis] == part]
    if left:
        raise ConfigError(f"'{text}': '{left[0]}' is one part too many")
    (found,) = cells
    return found


def _meant(part: str, legal: Sequence[str], labels: Mapping[str, str]) -> str | None:
    """The legal part of this name, or else the one that is shown so."""
    shown = [one for one in legal if labels.get(one) == part]
    return part if part in legal else shown[0] if len(shown) == 1 else None
