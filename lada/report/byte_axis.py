"""A logarithmic axis of bytes that can be read: ticks at 1, 2 and 5 times powers of ten, with units."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lada.report.series import of_bytes

STEPS = ((1, 2, 5), (1, 5), (1,))
"""Multiples of powers of ten at which ticks stand, the finest that fits."""
ROOM = 1.12
"""Factor between the outermost value and the end of its axis, at least."""


def byte_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Ticks that enclose ``low`` to ``high`` (bytes, above zero): at least two, and ``most`` where that goes.

    Whole decades are thinned where even those are more than ``most``, from two on; the upper end may then
    stand beyond the last.
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    found: list[float] = []
    for steps in STEPS:
        every = [step * 10.0**decade for decade in decades for step in steps]
        first = max(place for place, tick in enumerate(every) if tick <= low)
        last = min(place for place, tick in enumerate(every) if tick >= high and place > first)
        found = every[first : last + 1]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / max(2, most))]


def byte_axis(axes: Axes, values: Iterable[float], *, most: int) -> None:
    """Make the x axis one of bytes around ``values``; those that are not above zero do not count.

    Args:
        most: labels that fit.
    """
    shown = [value for value in values if value > 0]
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    if not shown:
        axes.xaxis.set_major_locator(NullLocator())
        return
    ticks = byte_ticks(min(shown), max(shown), most=most)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: of_bytes(value)))
    axes.set_xlim(min(ticks[0], min(shown) / ROOM), max(ticks[-1], max(shown) * ROOM))
