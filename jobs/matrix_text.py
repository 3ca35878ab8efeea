"""The grid of a matrix's runs in plain characters: an arm a line, a place a column, a character a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from jobs.matrix_cells import CellState, CellView
from jobs.words import duration

MARKS: Mapping[CellState, str] = {
    "done": "#",
    "running": ">",
    "queued": "q",
    "failed": "x",
    "begun": "~",
    "to do": ".",
}


def render(name: str, views: Sequence[CellView]) -> Group:
    """Counts, the grid, and what the characters mean."""
    places = list(dict.fromkeys(view.place for view in views))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for scenario, dataset, shots in places:
        table.add_column(f"{scenario}\n{dataset}\n{shots}-shot", no_wrap=True)
    for arm, at in dict.fromkeys((view.arm, view.at) for view in views):
        mine = [view for view in views if (view.arm, view.at) == (arm, at)]
        marks = ["".join(MARKS[view.state] for view in mine if view.place == place) for place in places]
        table.add_row(f"{arm} {at}".strip(), *marks)
    legend = "  ".join(f"{mark} {state}" for state, mark in MARKS.items())
    return Group(f"{name}: {_counts(views)}", table, f"A character a seed: {legend}")


def _counts(views: Sequence[CellView]) -> str:
    count = Counter(view.state for view in views)
    told = ", ".join(f"{count[state]} {state}" for state in MARKS if count[state])
    took = [view.seconds for view in views if view.state == "done" and view.seconds]
    left = len(views) - count["done"]
    if not took or not left:
        return f"{len(views)} runs: {told}"
    work = duration(left * sum(took) / len(took))
    return f"{len(views)} runs: {told}; about {work} of work left, one after the other"
