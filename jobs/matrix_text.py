"""The grid of a matrix's runs in plain characters: arms by places, a character a seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from jobs.matrix_cells import CellState, CellView, once
from jobs.words import duration

MARKS: Mapping[CellState, str] = {
    "done": "#",
    "running": ">",
    "queued": "q",
    "failed": "x",
    "begun": "~",
    "to do": ".",
}


def render(name: str, views: Sequence[CellView], width: int) -> Group:
    """Counts, a grid per matrix, and what the characters mean.

    Args:
        width: of the screen, in characters.
    """
    legend = "  ".join(f"{mark} {state}" for state, mark in MARKS.items())
    blocks: list[RenderableType] = []
    for matrix in dict.fromkeys(view.matrix for view in views):
        mine = [view for view in views if view.matrix == matrix]
        if matrix != name:
            blocks.append(f"{matrix}: {_counts(mine)}")
        blocks.append(_grid(mine, width))
    return Group(f"{name}: {_counts(once(views))}", *blocks, f"A character a seed: {legend}")


def _grid(views: Sequence[CellView], width: int) -> Table:
    """Arms by places, or places by arms, or a line for each of both: the first that the screen holds."""
    marks: dict[tuple[str, str], str] = defaultdict(str)
    for view in views:
        scenario, dataset, shots = view.place
        arm, place = f"{view.arm} {view.at}".strip(), f"{scenario} {dataset} {shots}-shot"
        marks[arm, place] += MARKS[view.state]
    turned = {(place, arm): seeds for (arm, place), seeds in marks.items()}
    for found, corner in ((marks, "arm"), (turned, "scenario")):
        rows, columns = (list(dict.fromkeys(key[axis] for key in found)) for axis in (0, 1))
        lines = [[row, *(found.get((row, column), "") for column in columns)] for row in rows]
        # A heading breaks between words; the frame takes two characters a column.
        sizes = [max(len(line[number]) for line in lines) for number in range(len(columns) + 1)]
        words = [max(map(len, column.split())) for column in (corner, *columns)]
        if sum(map(max, sizes, words)) + 2 * len(sizes) <= width:
            return _table([corner, *(column.replace(" ", "\n") for column in columns)], lines)
    return _table(["arm", "scenario", ""], [[*key, seeds] for key, seeds in marks.items()])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in head:
        table.add_column(column, no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def _counts(views: Sequence[CellView]) -> str:
    count = Counter(view.state for view in views)
    told = ", ".join(f"{count[state]} {state}" for state in MARKS if count[state])
    took = [view.seconds for view in views if view.state == "done" and view.seconds]
    left = len(views) - count["done"]
    if not took or not left:
        return f"{len(views)} runs: {told}"
    work = duration(left * sum(took) / len(took))
    return f"{len(views)} runs: {told}; about {work} of work left, one after the other"
