"""What filters did, round by round: the share of questions selected, and the rewards that they learn from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lada.config import SERVER
from lada.matrix.definition import Matrix
from lada.report.curves import MOST_BANDS, line, row_title
from lada.report.results import PLACE, Results
from lada.report.series import Place, gaps, over_seeds, places, seeds_said
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
WHO = {"clients": "clients choose", SERVER: "server chooses"}


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
        f"is chosen by clusters, not by a filter). {configured_shares(results.matrix, arms)} Rewards: the "
        "labels that filters learn from; AUC: of the reward for “the preferred text is right”, by sealed "
        "answers that no party sees; 0.5 is chance. Where not every line has a value a panel says how many "
        f"have. {seeds_said(results, bands=len(lines) <= MOST_BANDS)}"
    )
    silent = set(results.rows["arm"]) - set(arms)
    missing = [*gaps(results, set(results.matrix.arms) - silent), *_unrecorded(results, table, arms)]
    return _draw(name, lines, rows, found, caption, missing)


def configured_shares(matrix: Matrix, arms: Sequence[str]) -> str:
    """Which arms' shares their configuration fixes, and which follow from what a filter learnt; sentences."""
    said: dict[str, list[str]] = {}
    for arm in arms:
        said.setdefault(_share_said(matrix, arm), []).append(matrix.label(arm))
    if len(said) == 1:
        return f"The share is {next(iter(said))}."
    parts = "; ".join(f"{how}: " + ", ".join(f"“{one}”" for one in labels) for how, labels in said.items())
    return f"The share is {parts}."


def _share_said(matrix: Matrix, arm: str) -> str:
    """What decides an arm's share, by its settings; those of a plug-in stand below ``method.lada``."""
    one = matrix.arms[arm]
    wanted = {
        key.removeprefix("method.").removeprefix("lada."): value
        for key, value in {**matrix.settings, **one.settings}.items()
    }
    mode, rule = wanted.get("select.mode", "filter"), wanted.get("select.rule", "threshold")
    if mode == "all" or wanted.get("use_filter", True) is False:
        return "everything, as configured without a filter"
    if mode != "filter" and one.replays:
        return "drawn without a filter, at most as many as another arm's filters took"
    if mode == "filter" and rule == "threshold":
        return "what the filter scores above a threshold, so it is learnt"
    size = f" of {wanted['select.share']:g}" if "select.share" in wanted else ""
    how = f"rule {rule}" if mode == "filter" else f"mode {mode}"
    return f"fixed by configuration (a share{size}, {how}) and flat for that reason, not learnt"


def _unrecorded(results: Results, table: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """Quantities without a value, of arms that have finished runs at a place, a line per side."""
    ran = set(results.rows[["arm", *PLACE]].itertuples(index=False, name=None))
    has = table[table["mean"].notna()]
    recorded = set(has[["arm", *PLACE, "side", "metric"]].itertuples(index=False, name=None))
    for place in places(results):
        for arm, side in itertools.product(arms, SIDES):
            here = (arm, place.scenario, place.dataset, place.shots)
            lacks = [one.title for one in COLUMNS if (*here, side, one.metric) not in recorded]
            if here in ran and lacks:
                what = ", ".join(lacks)
                yield f"{results.matrix.label(arm)}, {place}, {WHO[side]}: not recorded: {what}"


def _draw(
    name: str,
    lines: Lines,
    rows: Sequence[tuple[str, Place | None]],
    found: Sequence[Place],
    caption: str,
    missing: Sequence[str],
) -> Drawing:
    handles: dict[str, Any] = {}
    with styled():
        figure, axes = panels(len(rows), len(COLUMNS), height=1.3)
        for (side, place), panel_row in zip(rows, axes, strict=True):
            for column, panel in zip(COLUMNS, panel_row, strict=True):
                handles |= _panel(panel, lines, column, side, place)
            where = f"\n{row_title(place, found)}" if place else ""
            panel_row[0].set_ylabel(f"{WHO[side]}{where}")
        figure.supxlabel("Round", fontsize=7.5)
        legend(figure, {key: handles[key] for key in lines if key in handles})
        title = "Selection and rewards per round"
        return drawing(name, figure, title=title, caption=caption, missing=missing)


def _panel(axes: Axes, lines: Lines, column: Column, side: str, place: Place | None) -> dict[str, Any]:
    drawn, bounds = {}, []
    for label, (rows, style) in lines.items():
        here = place.of(rows) if place else rows
        mine = here[(here["side"] == side) & (here["metric"] == column.metric)].sort_values("round")
        if mine["mean"].notna().any():
            drawn[label] = line(axes, mine, style, with_band=len(lines) <= MOST_BANDS)
            spread = mine["std"].fillna(0) * (len(lines) <= MOST_BANDS)
            bounds += [(mine["mean"] - spread).min(), (mine["mean"] + spread).max()]
    lacks = f" ({len(drawn)}/{len(lines)} lines)" if 0 < len(drawn) < len(lines) else ""
    axes.set_title(f"{column.title}{lacks}")
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
