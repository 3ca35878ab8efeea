"""A table as data: headers, entries, footnotes. Builders fill it, renderers write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Key = tuple[str, ...]
"""Headers of a row or column from the outer to the inner, e.g. ``("scenario 1", "client-1")``."""
Mark = Literal["best", "second"]
AXES = ("dataset", "scenario", "shots", "arm", "party", "at")
IMPROVEMENT = "improvement"
"""Stands for an arm where a difference of arms is shown."""
MEAN = "mean"
"""Stands for a party where the mean over all parties is shown."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the best of the others, on the same questions.

    Attributes:
        arm, baseline: keys in the matrix.
        won, lost, questions: of all seeds together: right in the arm alone, in the baseline alone, asked.
        p: of McNemar's exact test before correction.
    """

    arm: str
    baseline: str
    won: int
    lost: int
    questions: int
    p: float


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        mean: over seeds, per cent (differences: points); None: nothing was measured.
        std: over seeds, with divisor n - 1; None with fewer than two.
        seeds: those that were measured; ``values`` holds what was measured, in their order.
        paper: the printed value, per cent or points.
        p: of McNemar's exact test, Holm-corrected over the table; differences only.
        interval: 95 per cent, points; differences only.
        notes: indices of the table's footnotes.
        signed: whether this is a difference.
        text: in place of a number (Table I); ``paper_text`` is what the paper prints there.
        cell: what it is of, by the names of `AXES`; empty where that is no cell of a matrix.
        best_round: mean over seeds of each seed's best round.
        baseline: arm that a difference is over.
        comparison: what stands behind a difference.
        unparsed, truncated: answers without a letter, and cut off at the token limit; per cent.
    """

    mean: float | None = None
    std: float | None = None
    seeds: tuple[int, ...] = ()
    paper: float | None = None
    mark: Mark | None = None
    p: float | None = None
    interval: tuple[float, float] | None = None
    notes: tuple[int, ...] = ()
    signed: bool = False
    text: str | None = None
    paper_text: str | None = None
    values: tuple[float, ...] = ()
    cell: Mapping[str, str] = field(default_factory=dict)
    best_round: float | None = None
    baseline: str | None = None
    comparison: Comparison | None = None
    unparsed: float | None = None
    truncated: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus printed, points; None where one of them is missing."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Table:
    """A table of the paper with measured numbers.

    Attributes:
        name: e.g. ``table2``; blocks: ``table2-unparsed``.
        title: one sentence, without a full stop.
        row_heads: what the row headers are called, outer to inner.
        rows, columns: keys in order; columns have two levels, of which the outer may be empty.
        labels: key's part -> how it is shown; a part without label is shown as it is.
        entries: (row, column) -> entry; a pair without entry has no place in the table (blank).
        footnotes: of single cells, by index: a, b, c, …
        remarks: of the whole table.
        tests: how many tests its p-values are corrected over.
        missing: what no finished run has measured.
        blocks: tables of the same rows beside it: rates.
    """

    name: str
    title: str
    row_heads: Key
    rows: tuple[Key, ...]
    columns: tuple[Key, ...]
    entries: Mapping[tuple[Key, Key], Entry]
    labels: Mapping[str, str] = field(default_factory=dict)
    footnotes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    tests: int = 0
    missing: tuple[str, ...] = ()
    blocks: tuple[Table, ...] = ()

    def label(self, part: str) -> str:
        """How a part of a key is shown."""
        return self.labels.get(part, part)

    def groups(self) -> list[tuple[str, tuple[Key, ...]]]:
        """Columns by their outer header, in order."""
        found: dict[str, list[Key]] = {}
        for column in self.columns:
            found.setdefault(column[0], []).append(column)
        return [(outer, tuple(columns)) for outer, columns in found.items()]


def letter(index: int) -> str:
    """Mark of a footnote: a to z, then aa, ab and so on."""
    letters = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        letters = chr(ord("a") + place) + letters
    return letters
