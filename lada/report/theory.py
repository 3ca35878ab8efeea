"""Section V on the toy of `lada.convergence`: mean squared gradient norm over the horizon."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from lada import convergence
from lada.report.style import KNOWN, QUIET, Drawing, Look, drawing, panels, styled

LINES = (
    ("unbiased", "unbiased, step 1/√T", KNOWN["lada"]),
    ("biased", "biased gradient", KNOWN["fedkd"]),
    ("constant-step", "constant step", KNOWN["fedmkt"]),
)
"""Control, how the legend calls it, its look."""


def rate(points: Sequence[convergence.Point], name: str) -> Drawing:
    """The theorem's rate and both negative controls, with the slopes that `convergence.write` writes."""
    with styled():
        figure, ((axes,),) = panels(1, 1, height=2.9, width=4.6)
        for control, label, style in LINES:
            mine = pd.DataFrame([vars(one) for one in points if one.control == control])
            if len(mine):
                _line(axes, mine, label, style)
        _guide(axes, convergence.means(points, LINES[0][0]))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({one.horizon for one in points}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Horizon T (steps)")
        axes.set_ylabel("Mean squared gradient norm G(T)")
        figure.legend(loc="outside upper center", ncols=1)
        caption = (
            "The bilevel toy of Section V (10 dimensions, 3 lower problems): means over seeds, bands from "
            "the smallest to the largest. Slopes are fitted to the larger half of the horizons, from the T "
            "that the legend names on, where the start no longer counts (convergence-slopes.csv has those of "
            "all horizons beside them). The theorem's rate is −1/2, and each control breaks one of its "
            "assumptions. It says nothing about selection, networks or texts."
        )
        return drawing(name, figure, title="Convergence of the bilevel toy", caption=caption)


def _line(axes: Axes, rows: pd.DataFrame, label: str, style: Look) -> None:
    table = rows.groupby("horizon")["value"].agg(["mean", "min", "max"]).reset_index()
    at, mean = table["horizon"].to_numpy(float), table["mean"].to_numpy(float)
    axes.fill_between(at, table["min"], table["max"], color=style.color, alpha=0.15, linewidth=0)
    upper = convergence.upper_half(dict(zip(table["horizon"], mean, strict=True)))
    said = f"{label}: slope {convergence.slope(upper):.2f} (T ≥ {min(upper)})"
    axes.plot(at, mean, label=said.replace("-", "−"), **style.plot)


def _guide(axes: Axes, curve: dict[int, float]) -> None:
    """A line of slope -1/2 a little below the measured one."""
    if curve:
        start = min(curve)
        heights = [0.7 * curve[start] * (start / horizon) ** 0.5 for horizon in curve]
        axes.plot(list(curve), heights, color=QUIET, linestyle=":", label="slope −1/2")
