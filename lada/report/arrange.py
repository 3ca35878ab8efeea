"""Which cells a table of the paper has, and where they stand in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from lada.config import ORACLE, SERVER
from lada.layers import CONFIGS, read_yaml, shipped
from lada.matrix.cells import expand
from lada.matrix.definition import Matrix
from lada.report.compare import Cell
from lada.report.layout import IMPROVEMENT, MEAN, Key
from lada.report.paper import FAMILIES

LADA = "lada"
SETTINGS = {0: "zero-shot", 1: "one-shot"}
HEADS = {
    "dataset": "Dataset",
    "scenario": "Scenario",
    "shots": "Setting",
    "party": "Party",
    "arm": "Method",
    "at": "Weights",
}
NAMED = tuple(HEADS)
"""Axes in the order in which a cell is named: ``scenario 1/zero-shot/client-1/lada``."""
GREEK = {"round_reward_weight=": "α = ", " exploration_weight=": ", λ = "}


@dataclass(frozen=True)
class Spec:
    """How a table of the paper is laid out.

    Attributes:
        number: Roman, as the paper counts.
        rows, columns: axes, outer and inner. An axis that is not named has one value.
        ranked: the axis along which the best is marked.
        has_mean: whether the mean over parties is a party of its own.
        ranks_untouched: whether a server that a method leaves as it came is ranked and a baseline. Choice: it
            is where the paper prints it (Standalone); where the paper compares clients alone it is not.
    """

    name: str
    number: str
    subject: str
    rows: Key
    columns: Key
    ranked: Literal["arm", "at"] = "arm"
    has_mean: bool = False
    ranks_untouched: bool = True

    def rivals(self, cell: Cell) -> Cell:
        """The same for all cells among which one is the best."""
        return cell._replace(at="") if self.ranked == "at" else cell._replace(arm="")

    @property
    def axes(self) -> Key:
        """The table's axes as a cell is named by them."""
        return tuple(axis for axis in NAMED if axis in (*self.rows, *self.columns))


@dataclass(frozen=True)
class Arrangement:
    """The cells of one matrix in one table."""

    matrix: Matrix
    spec: Spec

    @cached_property
    def measured(self) -> tuple[Cell, ...]:
        """Cells that the matrix's runs measure."""
        found = dict.fromkeys(replace(cell, seed=0) for cell in expand(self.matrix))
        return tuple(
            Cell(cell.dataset, cell.scenario, cell.shots, cell.arm, party, cell.at)
            for cell in found
            for party in self.parties(cell.scenario)
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells: those measured, then differences of arms, then means over parties."""
        return (*self.measured, *self._improvements(), *self._means())

    @cached_property
    def baselines(self) -> tuple[str, ...]:
        """Arms that LaDa is compared with: all others that leave the answers sealed; empty without LaDa."""
        return tuple(arm for arm in self.matrix.arms if arm != LADA and self.competes(arm))

    def competes(self, arm: str) -> bool:
        """Whether an arm can be the best: it reads no answers."""
        return arm in self.matrix.arms and ORACLE not in self.matrix.label(arm)

    def _improvements(self) -> Iterator[Cell]:
        if LADA in self.matrix.arms and self.baselines:
            yield from (cell._replace(arm=IMPROVEMENT) for cell in self.measured if cell.arm == LADA)

    def _means(self) -> Iterator[Cell]:
        if self.spec.has_mean:
            yield from dict.fromkeys(cell._replace(party=MEAN) for cell in self.measured)

    def parties(self, scenario: str) -> list[str]:
        """Clients in order, then the server."""
        parties = self.matrix.parties(scenario)
        if parties is None:
            parties = read_yaml(shipped("scenarios", scenario, CONFIGS))["parties"]
        names = [str(party["name"]) for party in parties]
        return sorted(names, key=lambda name: (name == SERVER, names.index(name)))

    # -- where they stand

    def place(self, cell: Cell) -> tuple[Key, Key]:
        """Row and column of a cell."""
        parts = parts_of(cell)
        row, column = (tuple(parts[axis] for axis in axes) for axes in (self.spec.rows, self.spec.columns))
        return row, column

    def keys(self, axes: Key, cells: tuple[Cell, ...]) -> tuple[Key, ...]:
        """Keys of rows or columns, each level in order of appearance."""
        found = dict.fromkeys(tuple(parts_of(cell)[axis] for axis in axes) for cell in cells)
        levels = [list(dict.fromkeys(level)) for level in zip(*found, strict=True)]

        def order(key: Key) -> tuple[int, ...]:
            return tuple(level.index(part) for level, part in zip(levels, key, strict=True))

        return tuple(sorted(found, key=order))

    @property
    def labels(self) -> dict[str, str]:
        """How parts of keys are shown."""
        found = {arm: self.matrix.label(arm) for arm in self.matrix.arms}
        for cell in self.measured:
            parts = parts_of(cell)
            found |= {parts[axis]: parts[axis].capitalize() for axis in ("scenario", "shots")}
            found[cell.at] = greek(cell.at)
        return {**found, IMPROVEMENT: "improvement", MEAN: "mean", "": ""}


def parts_of(cell: Cell) -> dict[str, str]:
    """Axis -> how a cell is named along it."""
    return {
        "dataset": cell.dataset,
        "scenario": f"scenario {cell.scenario}",
        "shots": SETTINGS[cell.shots],
        "party": cell.party,
        "arm": cell.arm,
        "at": cell.at,
    }


def printed_as(cell: Cell) -> dict[str, str]:
    """The cell as `lada.report.paper` names it."""
    named = {"scenario": cell.scenario, "shots": str(cell.shots), "arm": cell.arm, "party": cell.party}
    return {"dataset": FAMILIES.get(cell.dataset, cell.dataset), **named, "at": cell.at}


def greek(at: str) -> str:
    """A point of Table VI's grid by the paper's letters; any other as it is."""
    for name, sign in GREEK.items():
        at = at.replace(name, sign)
    return at
