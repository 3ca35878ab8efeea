"""Fig. 2: the learnability gap. What plain distillation gives a client by server, and a server by client."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lada.config import SERVER
from lada.report.curves import LEAST_SPAN
from lada.report.results import Results, final
from lada.report.series import gaps, over_seeds, seeds_said, short, size
from lada.report.style import OTHERS, Drawing, Look, absent, drawing, legend, panels, styled, zoom

BEFORE = "before"
SIDES = {"client": "Client's accuracy (%)", "server": "Server's accuracy (%)"}
OTHER = {"client": "server", "server": "client"}


def learnability(results: Results, name: str) -> Drawing:
    """Per data set, setting and arm a row: the client's accuracy by server, and the server's by client.

    Scenarios without exactly one client are left out.
    """
    table = _table(results)
    rows = list(table[["dataset", "shots", "arm"]].drop_duplicates().itertuples(index=False, name=None))
    with styled():
        figure, axes = panels(max(1, len(rows)), len(SIDES), height=2.2)
        handles: dict[str, Any] = {}
        for (dataset, shots, arm), line in zip(rows, axes, strict=False):
            here = table[(table["dataset"] == dataset) & (table["shots"] == shots) & (table["arm"] == arm)]
            setting = "one-shot" if shots else "zero-shot"
            for (side, title), panel in zip(SIDES.items(), line, strict=True):
                handles |= _panel(panel, here, side, _looks(table))
                panel.set_title(f"{results.matrix.label(arm)}, {dataset}, {setting}")
                panel.set_ylabel(title)
                panel.set_xlabel(f"{OTHER[side]}'s model, by size")
        if not rows:
            for panel in axes[0]:
                absent(panel)
        legend(figure, handles)
        caption = (
            "Federations of one client. Left: the client after distillation from each server, a line per "
            "client; right: the server after distillation from each client, a line per server. "
            "The bar at a point: the same party before it, after local training (client) or as it came "
            "(server). "
            f"{_of_the_lab(results)}{seeds_said(results)}"
        )
        return drawing(name, figure, title="Learnability gap", caption=caption, missing=gaps(results))


def _of_the_lab(results: Results) -> str:
    """What levels mean where questions are made for a federation (`lada.data.lab`)."""
    if not any(dataset.startswith("lab-") for dataset in results.matrix.datasets):
        return ""
    return (
        "The lab's questions are of domains of a federation's own models, so levels differ between "
        "federations: read a point against its bar. "
    )


def _table(results: Results) -> pd.DataFrame:
    """``mean`` and ``std`` by data set, setting, arm, client, server, side and ``when`` (before or after)."""
    accuracy = results.rows[results.rows["metric"] == "accuracy"]
    clients = accuracy[accuracy["party"] != SERVER].groupby("scenario")["party"].nunique()
    accuracy = accuracy[accuracy["scenario"].isin(clients[clients == 1].index)]
    both = [final(accuracy).assign(when="after"), accuracy[accuracy["round"] == 0].assign(when=BEFORE)]
    rows = pd.concat(both).assign(value=lambda frame: 100 * frame["value"])
    rows = rows.assign(side=rows["party"].where(rows["party"] == SERVER, "client"))
    models = {
        (scenario, side): model
        for scenario, side, model in rows[["scenario", "side", "model"]].itertuples(index=False, name=None)
    }
    for side in SIDES:
        rows[f"{side}_model"] = [models[scenario, side] for scenario in rows["scenario"]]
    by = ["dataset", "shots", "arm", "client_model", "server_model", "side", "when"]
    return over_seeds(rows, by)


def _looks(table: pd.DataFrame) -> dict[str, Look]:
    """A look per model, the same in all panels."""
    models = sorted({*table["client_model"], *table["server_model"]}, key=lambda model: (size(model), model))
    return {model: OTHERS[number % len(OTHERS)] for number, model in enumerate(models)}


def _panel(axes: Axes, rows: pd.DataFrame, side: str, look: dict[str, Look]) -> dict[str, Any]:
    """Lines of one side's models over the other side's, after distillation, a bar for before it at each."""
    mine, drawn = rows[rows["side"] == side], {}
    other = f"{OTHER[side]}_model"
    partners = sorted(set(mine[other]), key=lambda model: (size(model), model))
    for model in sorted(set(mine[f"{side}_model"]), key=lambda one: (size(one), one)):
        here = mine[mine[f"{side}_model"] == model]
        after = here[here["when"] == "after"].set_index(other).reindex(partners)
        before = here[here["when"] == BEFORE].set_index(other).reindex(partners)
        style, at = look[model], range(len(partners))
        drawn[f"{side} {short(model)}"] = axes.errorbar(
            at,
            after["mean"],
            yerr=None if after["std"].isna().all() else after["std"],
            color=style.color,
            linestyle=style.line,
            elinewidth=0.7,
            capsize=1.5,
            **style.point,
        )
        axes.vlines(at, before["mean"], after["mean"], color=style.color, linewidth=0.6)
        axes.plot(at, before["mean"], color=style.color, linestyle="none", marker="_", markersize=9)
    spread = mine["std"].fillna(0)
    zoom(axes, (mine["mean"] - spread).min(), (mine["mean"] + spread).max(), least=LEAST_SPAN)
    names = [short(model) for model in partners]
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.3, len(partners) - 0.7)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return drawn
