"""A matrix: the runs behind a table, as arms x scenarios x datasets x shots x seeds. Pure: YAML -> cells.

configs/matrices/<name>.yaml names arms (a method and its settings) and the axes over which every arm runs;
``grid`` multiplies each arm by all combinations of some settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lada.config import CONFIGS, Layer, Options, RunConfig, layers, read_yaml, shipped, validate
from lada.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_+.-]{0,47}$")]
Filled = Annotated[tuple[Any, ...], Field(min_length=1)]


class Arm(Options):
    """What is compared.

    Attributes:
        method: as METHOD=.
        settings: as SET=, dotted key -> value.
        replays: dotted key of an option that takes a run -> the arm whose run of the same cell it takes.
        label: what tables call the arm; None: its name.
        tuned: the arm of the tuning matrix whose rates this one takes.
    """

    method: str
    settings: Mapping[str, Any] = {}
    replays: Mapping[str, str] = {}
    label: str | None = None
    tuned: str | None = None


class Matrix(Options):
    """A file of configs/matrices.

    Attributes:
        settings: of all runs; an arm's own come after them.
        grid: dotted key -> values; every arm runs at every combination.
        contrasts: pairs of arms to be compared question by question.
    """

    tier: str = "lab"
    size: str = "quick"
    settings: Mapping[str, Any] = {}
    scenarios: Annotated[tuple[str, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = ("lab-math",)
    shots: Annotated[tuple[Literal[0, 1], ...], Field(min_length=1)] = (0,)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    arms: Annotated[Mapping[Name, Arm], Field(min_length=1)]
    grid: Mapping[str, Filled] = {}
    contrasts: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _a_grid_is_of_one_place(self) -> Matrix:
        if self.grid and max(len(self.scenarios), len(self.datasets), len(self.shots)) > 1:
            raise ValueError("a grid is of one scenario, one dataset and one number of shots")
        return self

    @model_validator(mode="after")
    def _arms_exist(self) -> Matrix:
        for name in itertools.chain(*self.contrasts):
            if name not in self.arms:
                raise ValueError(f"contrasts name '{name}'; arms here: {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            for source in arm.replays.values():
                if source not in self.arms:
                    raise ValueError(f"arm {name} replays '{source}'; arms here: {', '.join(self.arms)}")
                if self.arms[source].replays:
                    raise ValueError(f"arm {name} replays '{source}', which itself replays another")
        return self

    def label(self, arm: str) -> str:
        """What tables call an arm."""
        return self.arms[arm].label or arm


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


def read_matrix(name: str, configs: Path = CONFIGS) -> Matrix:
    """A matrix by its name in configs/matrices, or by the path of a YAML file.

    Raises:
        ConfigError: it is not there, or not a matrix.
    """
    path = shipped("matrices", name, configs)
    content = read_yaml(path)
    return validate(Matrix, content, {key: str(path) for key in content})


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
    return [f"{key}={_plain(key, value)}" for key, value in wanted.items()]


def cell_layers(
    matrix: Matrix, cell: Cell, resolve: Callable[[list[Layer]], RunConfig], configs: Path = CONFIGS
) -> list[Layer]:
    """The configuration layers of a cell's run."""
    return layers(
        scenario=cell.scenario,
        method=matrix.arms[cell.arm].method,
        dataset=cell.dataset,
        size=matrix.size,
        tier=matrix.tier,
        settings=settings(matrix, cell, resolve),
        configs=configs,
    )


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"key '{key}': settings here are dotted keys with plain values, not {value!r:.80}")
