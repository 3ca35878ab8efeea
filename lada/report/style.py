"""How figures look, and how one becomes a PDF and a PNG whose bytes depend on what is drawn alone.

Colours are those of Okabe and Ito (2008), told apart with any colour vision; every arm also has a marker, a
line and a hatch of its own, so that figures can be read without colour.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 7.2
"""Inches: the text of a page of two columns."""
DPI = 200
QUIET = "#595959"

LineStyle = str | tuple[int, tuple[int, ...]]

RC: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 6.8,
    "axes.labelsize": 7.5,
    "axes.titlepad": 3.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How one line, marker or bar is drawn."""

    color: str
    line: LineStyle
    marker: str
    hatch: str = ""
    width: float = 1.2

    @property
    def plot(self) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {"color": self.color, "linestyle": self.line, "linewidth": self.width} | self.point

    @property
    def is_heavy(self) -> bool:
        """Whether it is drawn above the others."""
        return self.width > 1.5

    @property
    def point(self) -> dict[str, Any]:
        """Arguments of a marker alone."""
        return {"marker": self.marker, "markerfacecolor": "white" if self.hatch else self.color}


BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
    "#7a7a7a",
)
DASH, DOT, DASH_DOT, LONG = "--", ":", "-.", (0, (7, 2))
BROKEN, TWO_DOTS = (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1))

KNOWN: Mapping[str, Look] = {
    "lada": Look(BLUE, "-", "o", "", 1.9),
    "standalone": Look(GREY, DOT, "x", "."),
    "fedkd": Look(RED, DASH, "s", "///"),
    "fedmkt": Look(GREEN, DASH_DOT, "^", "xxx"),
    "wasp": Look(ORANGE, BROKEN, "D", "\\\\\\"),
}
"""Arms of the main tables: the same in all figures."""
OTHERS = (
    Look(PURPLE, DASH, "v", "---"),
    Look(BLACK, TWO_DOTS, "P", "+++"),
    Look(SKY, LONG, "X", "|||"),
    Look(GREEN, "-", "<", "oo"),
    Look(ORANGE, DASH, ">", "**"),
    Look(RED, DOT, "h", "//"),
    Look(GREY, "-", "*", "\\\\"),
    Look(SKY, DASH_DOT, "p", "xx"),
    Look(PURPLE, BROKEN, "8", "--"),
    Look(BLACK, DASH_DOT, "d", "++"),
    Look(BLUE, DASH, "1", "||"),
    Look(GREEN, DOT, "2", "o"),
    Look(ORANGE, "-", "3", "*"),
    Look(RED, LONG, "4", "/"),
    Look(GREY, DASH, "+", "\\"),
    Look(PURPLE, "-", "H", "x"),
    Look(SKY, BROKEN, "o", "-"),
    Look(BLACK, "-", "s", "+"),
    Look(BLUE, TWO_DOTS, "^", "|"),
)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look per name, in order: those of `KNOWN` their own, the others from `OTHERS` in turn."""
    others = iter(range(len(names)))
    return {name: KNOWN.get(name) or OTHERS[next(others) % len(OTHERS)] for name in names}


@contextmanager
def styled() -> Iterator[None]:
    """Everything drawn or saved inside looks as said here, whatever the user's own settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def panels(
    rows: int, columns: int, *, height: float, width: float = WIDTH
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows`` x ``columns`` axes, each row ``height`` inches, with room for a label below."""
    figure = Figure(figsize=(width, height * rows + 0.25))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def absent(axes: Axes, why: str = "no finished run") -> None:
    """An empty panel that says so; absent is not zero."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET)


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One legend for all panels, above them; the figure grows by what it needs."""
    if not handles:
        return
    width, height = figure.get_size_inches()
    columns = int(width / (0.55 + 0.065 * max(map(len, handles))))
    columns = max(1, min(6, columns, len(handles)))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.08 + 0.17 * rows)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns)


def zoom(axes: Axes, low: float, high: float, *, least: float) -> None:
    """Limits of the y axis around [low, high], at least ``least`` apart: noise shall not fill a panel.

    What is never negative has no room below zero.
    """
    middle, span = (low + high) / 2, max((high - low) * 1.15, least)
    bottom = max(0.0, middle - span / 2) if low >= 0 else middle - span / 2
    axes.set_ylim(bottom, bottom + span)


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: its files are <name>.pdf and <name>.png.
        title: what it is, for headings and alternative text.
        caption: what is drawn, what bands and bars mean, over how many seeds.
        missing: what the matrix has and the figure lacks.
        files: ending -> bytes.
        stated: what the paper's text states of it, beside what was measured.
    """

    name: str
    title: str
    caption: str
    missing: tuple[str, ...]
    files: Mapping[str, bytes]
    stated: tuple[str, ...] = ()


def drawing(name: str, figure: Figure, *, title: str, caption: str, missing: Sequence[str] = ()) -> Drawing:
    """Save a figure in both forms; the same figure gives the same bytes with the same libraries."""
    return Drawing(name, title, caption, tuple(missing), {"pdf": _pdf(figure), "png": _png(figure)})


def _pdf(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return content.getvalue()


def _png(figure: Figure) -> bytes:
    """At `DPI`, with a palette of 256 colours: a third of the bytes, and lines and markers look the same."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(content, format="png", optimize=True, dpi=(DPI, DPI))
    return content.getvalue()
