"""Fig. 5: bytes that each method exchanges, by scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lada.report.results import PLACE, Results
from lada.report.series import Place, exchanged, gaps, over_seeds, places, seeds_said
from lada.report.stated import bytes_stated
from lada.report.style import QUIET, Drawing, Look, drawing, legend, looks, panels, styled

MEGABYTE = 1e6
ROOM = 0.82
"""Share of a scenario's place on the axis that its bars take."""


def unit(largest: float) -> tuple[float, str]:
    """Bytes of a unit and its name: MB from one megabyte on, else kB."""
    return (MEGABYTE, "MB") if largest >= MEGABYTE else (1e3, "kB")


def traffic(results: Results, name: str) -> Drawing:
    """Bytes of a whole run: a panel per data set and setting, a group of bars per scenario, a bar per arm.

    The filled part counts a message to all once; the whole bar counts it once per recipient.
    """
    sent = exchanged(results)
    silent = [arm for arm in results.matrix.arms if not sent[sent["arm"] == arm]["unicast"].any()]
    arms = [arm for arm in results.matrix.arms if arm not in silent]
    table = {
        measure: over_seeds(sent.rename(columns={measure: "value"}), ["arm", *PLACE])
        for measure in ("once", "unicast")
    }
    scale, word = unit(float(table["unicast"]["mean"].max()))
    found = [place for place in places(results) if len(place.of(table["unicast"]))]
    rows = list(dict.fromkeys((place.dataset, place.shots) for place in found))
    look = looks(list(results.matrix.arms))
    with styled():
        figure, axes = panels(len(rows), 1, height=1.75)
        for (dataset, shots), (panel,) in zip(rows, axes, strict=True):
            groups = [Place(dataset, scenario, shots) for scenario in results.matrix.scenarios]
            _panel(panel, table, groups, {arm: look[arm] for arm in arms}, scale)
            several = len({one for one, _ in rows}) > 1
            panel.set_title(f"{groups[0].setting}, {dataset}" if several else groups[0].setting)
            panel.set_ylabel(f"Sent per run ({word})")
        legend(figure, _keys(results, arms, look))
        caption = _caption(results, silent)
        drawn = drawing(
            name, figure, title="Communication per method", caption=caption, missing=gaps(results)
        )
    return replace(drawn, stated=bytes_stated(results, table["unicast"]))


def _caption(results: Results, silent: Sequence[str]) -> str:
    none = ", ".join(results.matrix.label(arm) for arm in silent)
    return (
        "Bytes of ids, texts and what stands for them, all rounds and parties of a run together; adapters "
        "and rewards are not counted. The filled part counts a message to all clients once, the whole bar "
        f"(with its number) once per client. {seeds_said(results)}"
        + (f" Without messages: {none}." if none else "")
    )


def _keys(results: Results, arms: Sequence[str], look: Mapping[str, Look]) -> dict[str, Any]:
    return {
        results.matrix.label(arm): Patch(
            facecolor=look[arm].color, hatch=look[arm].hatch, edgecolor="white", linewidth=0
        )
        for arm in arms
    }


def _panel(
    axes: Axes,
    table: Mapping[str, pd.DataFrame],
    groups: Sequence[Place],
    look: Mapping[str, Look],
    scale: float,
) -> None:
    width = ROOM / max(1, len(look))
    highest = max(
        place.of(table["unicast"])["mean"].max() for place in groups if len(place.of(table["unicast"]))
    )
    for group, place in enumerate(groups):
        here = {measure: place.of(rows).set_index("arm") for measure, rows in table.items()}
        for number, (arm, style) in enumerate(look.items()):
            at = group + width * (number - (len(look) - 1) / 2)
            if arm in here["unicast"].index:
                once, all_of = here["once"].loc[arm], here["unicast"].loc[arm]
                _bar(axes, at, 0.9 * width, (once["mean"], all_of["mean"], all_of["std"]), style, scale)
            else:
                axes.text(at, 0.02 * highest / scale, "no run", rotation=90, ha="center", color=QUIET, size=6)
    axes.set_xticks(range(len(groups)), [f"scenario {place.scenario}" for place in groups])
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)


def _bar(
    axes: Axes, at: float, width: float, heights: tuple[float, float, float], style: Look, scale: float
) -> None:
    once, unicast, std = (height / scale for height in heights)
    solid: dict[str, Any] = {
        "edgecolor": "white",
        "linewidth": 0,
        "hatch": style.hatch,
        "facecolor": style.color,
    }
    axes.bar(at, once, width, **solid)
    axes.bar(at, unicast, width, facecolor="none", edgecolor=style.color, linewidth=0.9, zorder=3)
    if std > 0:  # NaN with one seed
        axes.errorbar(at, unicast, yerr=std, color="black", linewidth=0.7, capsize=1.5, zorder=4)
    top = unicast + (std if std > 0 else 0)
    axes.annotate(
        number(unicast), (at, top), xytext=(0, 1.5), textcoords="offset points", ha="center", size=6
    )


def number(value: float) -> str:
    """Two or three significant digits, no exponent."""
    if value >= 10:
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
