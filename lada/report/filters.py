"""What filters did, round by round: the share of questions selected, and the rewards that they learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lada.config import SERVER
from lada.report.curves import MOST_BANDS, line, row_title
from lada.report.results import PLACE, Results
from lada.report.series import Place, over_seeds, places, seeds_said
from lada.report.style import (
    DASH,
    GREY,
    OTHERS,
    Drawing,
    Look,
    absent,
    drawing,
    legend,
    looks,
    panels,
    styled,
    zoom,
)

SIDES = ("clients", SERVER)


@dataclass(frozen=True)
class Column:
    """One quantity. ``least``: what its axis spans at least; ``reference``: a line drawn in grey."""

    metric: str
    title: str
    least: float
    reference: float | None = None


COLUMNS = (
    Column("share", "selected share", 0.5),
    Column("reward_mean", "mean reward", 0.1, 0.5),
    Column("reward_std", "std of rewards", 0.1),
    Column("auc_reward", "AUC of reward", 0.4, 0.5),
)
"""A sample is selected above a predicted reward of 0.5 (Eq. 10); an AUC of 0.5 is chance."""
Lines = Mapping[str, tuple[pd.DataFrame, Look]]


def selection(results: Results, name: str) -> Drawing | None:
    """What filters did per round; None where no arm has rewards.

    One arm with rewards: a line per place. Several: a line per arm, and rows for each place.
    """
    table = _table(results)
    arms = [arm for arm in results.matrix.arms if arm in set(table["arm"])]
    if not arms:
        return None
    found = [place for place in places(results) if len(place.of(table))]
    lines: Lines
    rows: list[tuple[str, Place | None]]
    if len(arms) == 1:
        lines = {
            row_title(one, found).replace("\n", ", "): (one.of(table), _look(one, found)) for one in found
        }
        rows, who = [(side, None) for side in SIDES], f" by {results.matrix.label(arms[0])}"
    else:
        look = looks(list(results.matrix.arms))
        lines = {results.matrix.label(arm): (table[table["arm"] == arm], look[arm]) for arm in arms}
        rows, who = [(side, place) for place in found for side in SIDES], ""
    caption = (
        f"Selection{who} per round, averaged over pairs of parties. Share: of the public questions (round 1 "
        "is chosen by clusters, not by a filter); rewards: the labels that filters learn from; AUC: of the "
        "reward for “the preferred text is right”, by sealed answers that no party sees; 0.5 is chance. "
        + seeds_said(results, bands=len(lines) <= MOST_BANDS)
    )
    return _draw(name, lines, rows, found, caption)


def _draw(
    name: str, lines: Lines, rows: Sequence[tuple[str, Place | None]], found: Sequence[Place], caption: str
) -> Drawing:
    handles: dict[str, Any] = {}
    with styled():
        figure, axes = panels(len(rows), len(COLUMNS), height=1.3)
        for (side, place), panel_row in zip(rows, axes, strict=True):
            for column, panel in zip(COLUMNS, panel_row, strict=True):
                handles |= _panel(panel, lines, column, side, place)
            where = f"\n{row_title(place, found)}" if place else ""
            panel_row[0].set_ylabel(f"{'clients choose' if side != SERVER else 'server chooses'}{where}")
        figure.supxlabel("Round", fontsize=7.5)
        legend(figure, {key: handles[key] for key in lines if key in handles})
        return drawing(name, figure, title="Selection and rewards per round", caption=caption)


def _panel(axes: Axes, lines: Lines, column: Column, side: str, place: Place | None) -> dict[str, Any]:
    drawn, bounds = {}, []
    for label, (rows, style) in lines.items():
        here = place.of(rows) if place else rows
        mine = here[(here["side"] == side) & (here["metric"] == column.metric)].sort_values("round")
        if len(mine):
            drawn[label] = line(axes, mine, style, with_band=len(lines) <= MOST_BANDS)
            spread = mine["std"].fillna(0) * (len(lines) <= MOST_BANDS)
            bounds += [(mine["mean"] - spread).min(), (mine["mean"] + spread).max()]
    axes.set_title(column.title)
    if not drawn:
        absent(axes, "not measured")
        return drawn
    if column.reference is not None:
        axes.axhline(column.reference, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        bounds.append(column.reference)
    zoom(axes, min(bounds), max(bounds), least=column.least)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return drawn


def _look(place: Place, found: Sequence[Place]) -> Look:
    """Colour and marker by scenario and data set, dashes and white markers for one-shot."""
    kinds = list(dict.fromkeys((one.dataset, one.scenario) for one in found))
    style = OTHERS[kinds.index((place.dataset, place.scenario)) % len(OTHERS)]
    return Look(style.color, DASH if place.shots else "-", style.marker, "/" if place.shots else "")


def _table(results: Results) -> pd.DataFrame:
    """Means over seeds of `COLUMNS` by arm, place, side and round; arms without rewards are left out."""
    rows = results.rows[results.rows["metric"].str.startswith("filter/")]
    names = rows["metric"].str.split("/", expand=True).reindex(columns=range(3))
    rows = rows.assign(partner=names[1], metric=names[2])
    rows = rows.assign(side=rows["party"].where(rows["party"] == SERVER, "clients"))
    rewarded = set(rows[rows["metric"] == "reward_mean"]["arm"])
    rows = rows[rows["arm"].isin(rewarded)]
    by = ["arm", *PLACE, "side", "round", "metric"]
    found: pd.DataFrame = over_seeds(pd.concat([rows, _shares(rows)]), by)
    return found[found["metric"].isin([column.metric for column in COLUMNS])]


def _shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``share``: pairs by the number of public questions.

    That number is pairs by coverage in the pair's first round, when nothing was selected before.
    """
    keys = ["arm", *PLACE, "seed", "party", "partner"]
    pairs = rows[rows["metric"] == "pairs"]
    covered = rows[rows["metric"] == "coverage"].rename(columns={"value": "covered"})
    both = pairs.merge(covered[[*keys, "round", "covered"]], on=[*keys, "round"])
    first = both.sort_values("round").groupby(keys).head(1)
    first = first[first["covered"] > 0]
    public = first.assign(public=first["value"] / first["covered"])[[*keys, "public"]]
    shares = both.merge(public, on=keys)
    return shares.assign(metric="share", value=shares["value"] / shares["public"])
