"""Accuracy and bytes of many arms: a row each, so that arms of equal bytes do not hide one another."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lada.config import SERVER
from lada.matrix.definition import Matrix
from lada.report.byte_axis import byte_axis
from lada.report.curves import LEAST_SPAN, row_title
from lada.report.paper import printed
from lada.report.results import Results
from lada.report.series import gaps, of_bytes, places, seeds_said
from lada.report.style import BLACK, KNOWN, QUIET, WIDTH, Drawing, drawing, styled

LINE = 0.155
"""Inches that a row takes."""
LETTERS = 38
"""Of an arm's label in one line."""
HEAVY = "lada"
WHO = {"clients": "clients' mean", SERVER: "server"}
KINDS = ("Methods of the paper", "Ablations of the paper", "Controls", "Pairings, rewards and losses")


@dataclass(frozen=True)
class Row:
    """A row of a strip: an arm, or the heading of a kind where ``arm`` is None."""

    text: str
    arm: str | None = None


def kind(matrix: Matrix, arm: str) -> str:
    """Which of `KINDS` an arm is: by whether the paper's tables print it, and by what it takes over."""
    methods = {cell[3] for table in ("table2", "table3", "table4") for cell in printed(table)}
    if arm in methods:
        return KINDS[0]
    if arm in {cell[3] for cell in printed("table5")}:
        return KINDS[1]
    one = matrix.arms[arm]
    return KINDS[2] if one.replays or one.method not in methods else KINDS[3]


def strips(results: Results, name: str, table: pd.DataFrame) -> Drawing:
    """Per place three panels with a common row per arm: bytes sent, clients' mean accuracy, the server's.

    Args:
        table: by arm, place and who: ``mean``, ``std``, ``bytes``, and ``leads``, whether no other arm
            dominates it.
    """
    found = [place for place in places(results) if len(place.of(table))]
    rows = {place: rows_of(results.matrix, place.of(table)) for place in found}
    counts = [sum(1 + row.text.count("\n") for row in rows[place]) for place in found]
    with styled():
        figure = Figure(figsize=(WIDTH, sum(LINE * count + 0.55 for count in counts)))
        grid = figure.subplots(len(found), 3, squeeze=False, sharey="row", height_ratios=counts)
        sent = table["bytes"]
        for place, panels in zip(found, grid, strict=True):
            here = place.of(table)
            _rows(panels, rows[place])
            _bytes(panels[0], here, rows[place], sent)
            for panel, (who, title) in zip(panels[1:], WHO.items(), strict=True):
                _accuracy(panel, here[here["who"] == who], rows[place])
                panel.set_title(f"{title}: accuracy (%)")
            panels[0].set_title(f"{row_title(place, found)}: sent".replace("\n", ", "))
        caption = (
            "Accuracy after the last round beside the bytes of ids and texts that all parties of a run sent, "
            "once per recipient (logarithmic); a row per arm, by kind and then by bytes. A filled point is "
            "one that no other arm dominates: none has fewer bytes and at least its accuracy, or as many and "
            f"more. {seeds_said(results)}"
        )
        return drawing(name, figure, title="Accuracy against bytes", caption=caption, missing=gaps(results))


def rows_of(matrix: Matrix, table: pd.DataFrame) -> list[Row]:
    """Headings and arms that the table has: by kind, then by bytes, then as in the matrix."""
    sent = table.groupby("arm")["bytes"].max()
    found: list[Row] = []
    for heading in KINDS:
        arms = [arm for arm in matrix.arms if arm in sent.index and kind(matrix, arm) == heading]
        if arms:
            found.append(Row(heading))
        for arm in sorted(arms, key=lambda one: float(sent[one])):
            found.append(Row(textwrap.fill(matrix.label(arm), LETTERS), arm))
    return found


def _heights(rows: Sequence[Row]) -> list[float]:
    """The middle of each row, counted in lines from above."""
    found, top = [], 0.0
    for row in rows:
        lines = 1 + row.text.count("\n")
        found.append(top + lines / 2)
        top += lines
    return found


def _rows(panels: Sequence[Axes], rows: Sequence[Row]) -> None:
    """Labels on the left, headings in bold, and LaDa's row marked in all panels."""
    heights = _heights(rows)
    panels[0].set_ylim(sum(1 + row.text.count("\n") for row in rows), 0)
    panels[0].set_yticks(heights, [row.text for row in rows], fontsize=6.3)
    for tick, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        if row.arm is None:
            tick.set_fontweight("bold")
        elif row.arm == HEAVY:
            tick.set_color(KNOWN[HEAVY].color)
            tick.set_fontweight("bold")
    for panel in panels:
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
        for height, row in zip(heights, rows, strict=True):
            if row.arm == HEAVY:
                panel.axhspan(height - 0.5, height + 0.5, color="#e4e4e4", linewidth=0, zorder=0)
            elif row.arm is None and height > 1:
                panel.axhline(height - 0.5, color="#bbbbbb", linewidth=0.5, zorder=0)
    for panel in panels[1:]:
        panel.tick_params(axis="y", labelleft=False)


def _bytes(axes: Axes, table: pd.DataFrame, rows: Sequence[Row], sent: pd.Series) -> None:
    byte_axis(axes, sent, most=4)
    low, high = axes.get_xlim()
    amounts = table.groupby("arm")["bytes"].max()
    for height, row in zip(_heights(rows), rows, strict=True):
        if row.arm is None:
            continue
        amount = float(amounts[row.arm])
        if amount <= 0:
            axes.text(
                0.03, height, "sends nothing", transform=axes.get_yaxis_transform(), va="center", size=6
            )
            continue
        axes.plot([amount], [height], "|", color=_color(row), markersize=6, markeredgewidth=1.4)
        is_left = amount**2 < low * high
        axes.annotate(
            of_bytes(amount),
            (amount, height),
            xytext=(4 if is_left else -4, 0),
            textcoords="offset points",
            ha="left" if is_left else "right",
            va="center",
            size=6,
            color=QUIET,
        )


def _accuracy(axes: Axes, table: pd.DataFrame, rows: Sequence[Row]) -> None:
    found = table.set_index("arm")
    for height, row in zip(_heights(rows), rows, strict=True):
        if row.arm not in found.index:
            continue
        one = found.loc[row.arm]
        axes.errorbar(
            one["mean"],
            height,
            xerr=one["std"] if one["std"] > 0 else None,
            color=_color(row),
            marker="o",
            markersize=4,
            markerfacecolor=_color(row) if one["leads"] else "white",
            elinewidth=0.8,
            capsize=1.5,
        )
    spread = table["std"].fillna(0)
    low, high = (table["mean"] - spread).min(), (table["mean"] + spread).max()
    span = max(1.1 * (high - low), LEAST_SPAN)
    middle = (low + high) / 2
    if pd.notna(middle):
        axes.set_xlim(middle - span / 2, middle + span / 2)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _color(row: Row) -> str:
    return KNOWN[HEAVY].color if row.arm == HEAVY else BLACK
