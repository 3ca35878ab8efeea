"""The runs behind a table: arms x scenarios x datasets x shots x seeds x points of a grid. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lada.config import RunConfig
from lada.errors import ConfigError
from lada.layers import CONFIGS, Layer, layers
from lada.matrix.definition import Matrix

ANY_SCENARIO = "one-client"
"""Where a matrix names a scenario's models itself, some file has to be read before they replace it."""


@dataclass(frozen=True)
class Cell:
    """One run of a matrix.

    Attributes:
        point: of the grid, dotted key -> value; empty without a grid.
    """

    arm: str
    scenario: str
    dataset: str
    shots: int
    seed: int
    point: tuple[tuple[str, Any], ...] = ()

    @property
    def at(self) -> str:
        """The point of the grid, readable: ``learning_rate=0.0001 decay=1.0``."""
        keys = [key for key, _ in self.point]
        return " ".join(f"{_shortest(key, keys)}={value}" for key, value in self.point)

    def __str__(self) -> str:
        at = f" {self.at}" if self.point else ""
        where = f"scenario {self.scenario}, {self.dataset}, {self.shots}-shot, seed {self.seed}"
        return f"{self.arm}{at}, {where}"


def _shortest(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, or all of it where another key ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(one.rpartition(".")[2] == last for one in keys) == 1 else key


def expand(matrix: Matrix) -> list[Cell]:
    """All cells, seed by seed; in each seed those that replay others stand after all that do not."""
    axes = itertools.product(matrix.seeds, matrix.scenarios, matrix.datasets, matrix.shots)
    cells = [
        Cell(arm, scenario, dataset, shots, seed, point)
        for seed, scenario, dataset, shots in axes
        for arm in matrix.arms
        for point in _points(matrix.grid)
    ]
    place = {seed: number for number, seed in enumerate(matrix.seeds)}
    return sorted(cells, key=lambda cell: (place[cell.seed], bool(matrix.arms[cell.arm].replays)))


def _points(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[tuple[str, Any], ...]]:
    for values in itertools.product(*grid.values()):
        yield tuple(zip(grid, values, strict=True))


def settings(matrix: Matrix, cell: Cell, resolve: Callable[[list[Layer]], RunConfig]) -> list[str]:
    """``a.b=c`` of a cell's run, as SET= takes them.

    Args:
        resolve: layers -> configuration; asked for the ids of replayed runs.

    Raises:
        ConfigError: an option is wrong.
    """
    arm = matrix.arms[cell.arm]
    wanted = {**matrix.settings, **arm.settings, **dict(cell.point), "shots": cell.shots, "seed": cell.seed}
    for key, source in arm.replays.items():
        other = Cell(source, cell.scenario, cell.dataset, cell.shots, cell.seed, cell.point)
        wanted[key] = resolve(cell_layers(matrix, other, resolve)).run_id
    found = [f"{key}={_plain(key, value)}" for key, value in wanted.items()]
    parties = matrix.parties(cell.scenario)
    if parties is not None:
        found += [f"scenario={cell.scenario}", f"parties={json.dumps(parties)}"]
    return found


def cell_layers(
    matrix: Matrix, cell: Cell, resolve: Callable[[list[Layer]], RunConfig], configs: Path = CONFIGS
) -> list[Layer]:
    """The configuration layers of a cell's run."""
    return layers(
        scenario=scenario_file(matrix, cell),
        method=matrix.arms[cell.arm].method,
        dataset=cell.dataset,
        size=matrix.size,
        tier=matrix.tier,
        settings=settings(matrix, cell, resolve),
        configs=configs,
    )


def scenario_file(matrix: Matrix, cell: Cell) -> str:
    """The file of configs/scenarios that a cell's run begins from; `settings` replaces what it says."""
    return cell.scenario if matrix.parties(cell.scenario) is None else ANY_SCENARIO


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"key '{key}': settings here are dotted keys with plain values, not {value!r:.80}")
