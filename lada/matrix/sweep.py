"""A matrix from the command line: one method over all combinations of some options' values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lada.errors import ConfigError
from lada.layers import parse_setting, parse_yaml
from lada.matrix.definition import Arm, Matrix
from lada.rundir import sha256, write_atomic


def sweep(
    *,
    place: Mapping[str, Any],
    method: str,
    settings: Iterable[str],
    grid: Iterable[str],
    seeds: Sequence[int],
) -> Matrix:
    """The matrix of a sweep.

    Args:
        place: tier, size, scenario, dataset, shots.
        settings: ``a.b=c`` of all runs.
        grid: ``a.b=c,d,…``: an option and its values.

    Raises:
        ConfigError: a setting is not of that form, or an option has one value only.
    """
    return Matrix(
        tier=place["tier"],
        size=place["size"],
        scenarios=(place["scenario"],),
        datasets=(place["dataset"],),
        shots=(place["shots"],),
        seeds=tuple(seeds),
        settings=dict(_plain(one) for one in settings),
        arms={method: Arm(method=method)},
        grid=dict(_values(one) for one in grid),
    )


def _plain(setting: str) -> tuple[str, Any]:
    parse_setting(setting)  # says what is wrong with it
    key, _, value = setting.partition("=")
    return key.strip(), parse_yaml(value, f"SET {setting}")


def _values(asked: str) -> tuple[str, tuple[Any, ...]]:
    key, equals, values = asked.partition("=")
    found = tuple(parse_yaml(value, f"GRID {asked}") for value in values.split(","))
    if not equals or not key.strip() or len(found) < 2:
        raise ConfigError(f"'{asked}' is not of the form key.subkey=value,value,… with two values or more")
    return key.strip(), found


def write_sweep(matrix: Matrix, folder: Path) -> Path:
    """The sweep as a matrix file of its own; the same sweep is the same file, so it goes on where it was."""
    content = json.loads(matrix.model_dump_json(exclude_defaults=True))
    (method,) = matrix.arms
    digest = sha256(json.dumps(content, sort_keys=True).encode())[:8]
    path = folder / f"sweep-{method}-{digest}.yaml"
    write_atomic(path, yaml.safe_dump(content, sort_keys=False))
    return path
