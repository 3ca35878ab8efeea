"""Accuracy against bytes: what a method's messages bought, and which methods no other one dominates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from lada.config import SERVER
from lada.report.curves import LEAST_SPAN, row_title
from lada.report.results import PLACE, Results
from lada.report.series import exchanged, gaps, last_accuracies, of_bytes, over_seeds, places, seeds_said
from lada.report.style import QUIET, Drawing, Look, absent, drawing, legend, looks, panels, styled, zoom

WHO = {"clients": "clients' mean", SERVER: "server"}


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (bytes, accuracy) that no other point beats in one and equals or beats in the other.

    Ascending in both; of equal points one.
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def pareto(results: Results, name: str) -> Drawing:
    """Last round's accuracy against bytes: per place a panel for the clients' mean and one for the server."""
    table, look = _table(results), looks(list(results.matrix.arms))
    rows = [place for place in places(results) if len(place.of(table))]
    columns = min(2, len(rows)) * len(WHO)
    handles: dict[str, Any] = {}
    with styled():
        figure, axes = panels(-(-len(rows) * len(WHO) // columns), columns, height=1.75)
        free = [panel for line in axes for panel in line]
        for panel in free[len(rows) * len(WHO) :]:
            panel.remove()
        pairs = [(place, who) for place in rows for who in WHO]
        for (place, who), panel in zip(pairs, free, strict=False):
            here = place.of(table)
            handles |= _panel(panel, here[here["who"] == who], look)
            panel.set_title(f"{row_title(place, rows)}, {WHO[who]}".replace("\n", ", "))
        figure.supxlabel("Sent per run, once per recipient", fontsize=7.5)
        figure.supylabel("Accuracy after the last round (%)", fontsize=7.5)
        legend(figure, {results.matrix.label(arm): handles[arm] for arm in look if arm in handles})
        caption = (
            "Accuracy after the last round against the bytes of ids and texts that all parties of a run sent "
            "(logarithmic). A line across is a method that sends nothing; steps join the others that no "
            f"method dominates. {seeds_said(results)}"
        )
        return drawing(name, figure, title="Accuracy against bytes", caption=caption, missing=gaps(results))


def _table(results: Results) -> pd.DataFrame:
    """``mean`` and ``std`` of accuracy and the mean ``bytes`` by arm, place and who."""
    rows = last_accuracies(results)
    rows = rows.assign(who=rows["party"].where(rows["party"] == SERVER, "clients"))
    sent = over_seeds(exchanged(results).rename(columns={"unicast": "value"}), ["arm", *PLACE])
    accuracy = over_seeds(rows, ["arm", *PLACE, "who"])
    found: pd.DataFrame = accuracy.merge(
        sent[["arm", *PLACE, "mean"]], on=["arm", *PLACE], suffixes=("", "_sent")
    )
    return found.rename(columns={"mean_sent": "bytes"})


def _panel(axes: Axes, rows: pd.DataFrame, look: Mapping[str, Look]) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    if rows.empty:
        absent(axes)
        return drawn
    for row in rows.sort_values("arm").itertuples():
        style = look[row.arm]
        if row.bytes > 0:
            error = row.std if row.std > 0 else None
            bars: dict[str, Any] = {"elinewidth": 0.7, "capsize": 1.5, "markersize": 5, "linestyle": "none"}
            drawn[row.arm] = axes.errorbar(
                row.bytes, row.mean, yerr=error, color=style.color, **bars, **style.point
            )
        else:
            drawn[row.arm] = axes.axhline(row.mean, color=style.color, linestyle=style.line, linewidth=1.2)
    steps = [step for step in front(zip(rows["bytes"], rows["mean"], strict=True)) if step[0] > 0]
    if len(steps) > 1:
        axes.step(*zip(*steps, strict=True), where="post", color=QUIET, linewidth=0.7, zorder=1)
    spread = rows["std"].fillna(0)
    zoom(axes, (rows["mean"] - spread).min(), (rows["mean"] + spread).max(), least=LEAST_SPAN)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: of_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return drawn
