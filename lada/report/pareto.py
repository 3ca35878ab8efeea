"""Accuracy against bytes: what a method's messages bought, and which methods no other one dominates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lada.config import SERVER
from lada.matrix.definition import Matrix
from lada.report.byte_axis import byte_axis
from lada.report.curves import LEAST_SPAN, row_title
from lada.report.results import PLACE, Results
from lada.report.series import exchanged, gaps, last_accuracies, over_seeds, places, seeds_said
from lada.report.strips import WHO, strips
from lada.report.style import QUIET, Drawing, Look, absent, drawing, legend, looks, panels, styled, zoom

MOST_POINTS = 8
"""Arms whose markers and names have room in one panel."""


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
    """Last round's accuracy against bytes: per place a panel for the clients' mean and one for the server.

    More than `MOST_POINTS` arms would lie on top of one another: these are drawn a row each, see `strips`.
    """
    table = _table(results)
    if table["arm"].nunique() > MOST_POINTS:
        return strips(results, name, table)
    look = looks(list(results.matrix.arms))
    rows = [place for place in places(results) if len(place.of(table))]
    handles: dict[str, Any] = {}
    with styled():
        figure, axes = panels(len(rows), len(WHO), height=1.5)
        for place, line in zip(rows, axes, strict=True):
            for who, panel in zip(WHO, line, strict=True):
                here = place.of(table)
                handles |= _panel(panel, here[here["who"] == who], look, results.matrix)
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
    found = found.rename(columns={"mean_sent": "bytes"})
    fronts = {
        key: set(front(zip(rows["bytes"], rows["mean"], strict=True)))
        for key, rows in found.groupby([*PLACE, "who"])
    }
    keys = found[[*PLACE, "who"]].itertuples(index=False, name=None)
    points = zip(found["bytes"], found["mean"], strict=True)
    return found.assign(leads=[point in fronts[key] for key, point in zip(keys, points, strict=True)])


def _panel(axes: Axes, rows: pd.DataFrame, look: Mapping[str, Look], matrix: Matrix) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    if rows.empty:
        absent(axes)
        return drawn
    byte_axis(axes, rows["bytes"], most=6)
    sending = rows[rows["bytes"] > 0].sort_values(["bytes", "arm"])
    for number, row in enumerate(sending.itertuples()):
        drawn[row.arm] = _point(axes, row, look[row.arm])
        _name(axes, row, matrix.label(row.arm), look[row.arm], is_above=number % 2 == 0)
    for row in rows[rows["bytes"] == 0].itertuples():
        style = look[row.arm]
        drawn[row.arm] = axes.axhline(row.mean, color=style.color, linestyle=style.line, linewidth=1.2)
    steps = [step for step in front(zip(rows["bytes"], rows["mean"], strict=True)) if step[0] > 0]
    if len(steps) > 1:
        axes.step(*zip(*steps, strict=True), where="post", color=QUIET, linewidth=0.7, zorder=1)
    spread = rows["std"].fillna(0)
    zoom(axes, (rows["mean"] - spread).min() - 1, (rows["mean"] + spread).max() + 1, least=LEAST_SPAN)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return drawn


def _point(axes: Axes, row: Any, style: Look) -> Any:
    """A marker with its spread; the paper's own method lies above all others."""
    bars: dict[str, Any] = {"elinewidth": 0.7, "capsize": 1.5, "markersize": 5, "linestyle": "none"}
    return axes.errorbar(
        row.bytes,
        row.mean,
        yerr=row.std if row.std > 0 else None,
        color=style.color,
        zorder=4 if style.is_heavy else 3,
        **bars,
        **style.point,
    )


def _name(axes: Axes, row: Any, label: str, style: Look, *, is_above: bool) -> None:
    """An arm's name at the end of its spread, towards the middle; neighbours stand on different sides."""
    low, high = axes.get_xlim()
    is_left = row.bytes**2 < low * high
    spread = (row.std if row.std > 0 else 0) * (1 if is_above else -1)
    axes.annotate(
        label,
        (row.bytes, row.mean + spread),
        xytext=(-3 if is_left else 3, 4 if is_above else -4),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="bottom" if is_above else "top",
        size=6,
        weight="bold" if style.is_heavy else "normal",
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
        zorder=5,
    )
