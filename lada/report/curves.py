"""Fig. 4: accuracy per round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lada.report.results import PLACE, Results
from lada.report.series import Place, accuracies, gaps, over_seeds, parties, places, seeds_said, short
from lada.report.stated import accuracies_stated
from lada.report.style import Drawing, Look, absent, drawing, legend, looks, panels, styled, zoom

LEAST_SPAN = 10.0
"""Points that an accuracy axis spans at least."""
MOST_BANDS = 6
"""With more lines than this, bands would hide each other and are left out."""


def rounds(results: Results, name: str) -> Drawing:
    """Accuracy per round: a row per place, a column per party, a line per arm."""
    measured, models = over_seeds(accuracies(results), ["arm", *PLACE, "party", "round"]), models_of(results)
    rows = [place for place in places(results) if len(place.of(measured))]
    columns, look = parties(measured), looks(list(results.matrix.arms))
    handles: dict[str, Any] = {}
    with styled():
        figure, axes = panels(len(rows), len(columns), height=1.2)
        for place, panel_row in zip(rows, axes, strict=True):
            here = place.of(measured)
            for party, panel in zip(columns, panel_row, strict=True):
                handles |= _panel(panel, here[here["party"] == party], look)
                model = models.get((place.scenario, party))
                panel.set_title(f"{party}: {model}" if model else party)
            panel_row[0].set_ylabel(row_title(place, rows))
        figure.supxlabel("Round (0: after local training)", fontsize=7.5)
        figure.supylabel("Accuracy (%)", fontsize=7.5)
        legend(figure, {results.matrix.label(arm): handles[arm] for arm in look if arm in handles})
        seeds = seeds_said(results, bands=len(look) <= MOST_BANDS)
        caption = (
            f"Accuracy on each party's test questions after each round. {seeds} "
            f"Axes differ between panels and span at least {LEAST_SPAN:g} points. An arm without "
            "rounds (standalone) is a line at its only value."
        )
        found = drawing(name, figure, title="Accuracy per round", caption=caption, missing=gaps(results))
    return replace(found, stated=accuracies_stated(results, measured))


def _panel(axes: Axes, rows: pd.DataFrame, look: Mapping[str, Look]) -> dict[str, Any]:
    """Lines with bands of one panel; returns the line of each arm, for the legend."""
    if rows["mean"].isna().all():
        absent(axes)
        return {}
    last, drawn = int(rows["round"].max()), {}
    for arm, style in look.items():
        mine = rows[rows["arm"] == arm].sort_values("round")
        if len(mine) == 1:
            mine = pd.concat([mine.assign(round=number) for number in range(last + 1)])
        if len(mine):
            drawn[arm] = line(axes, mine, style, with_band=len(look) <= MOST_BANDS)
    spread = rows["std"].fillna(0) * (len(look) <= MOST_BANDS)
    zoom(axes, (rows["mean"] - spread).min(), (rows["mean"] + spread).max(), least=LEAST_SPAN)
    axes.set_xticks(range(last + 1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return drawn


def line(axes: Axes, rows: pd.DataFrame, style: Look, *, with_band: bool = True) -> Any:
    """A line of means over rounds, with a band of one standard deviation where there are several seeds.

    Args:
        rows: columns ``round``, ``mean``, ``std``, by ascending round.
    """
    at, mean, std = (rows[key].to_numpy(float) for key in ("round", "mean", "std"))
    if with_band and np.isfinite(std).any():
        axes.fill_between(at, mean - std, mean + std, color=style.color, alpha=0.15, linewidth=0)
    return axes.plot(at, mean, zorder=3 if style.is_heavy else 2, **style.plot)[0]


def models_of(results: Results) -> dict[tuple[str, str], str]:
    """(scenario, party) -> its model without the owner."""
    found = results.rows.drop_duplicates(["scenario", "party"])
    return {(row.scenario, row.party): short(row.model) for row in found.itertuples()}


def row_title(place: Place, rows: Sequence[Place]) -> str:
    """A place in up to three lines; the data set where there are several."""
    several = len({one.dataset for one in rows}) > 1
    return f"scenario {place.scenario}\n{place.setting}" + (f"\n{place.dataset}" if several else "")
