"""Made-up results of a matrix, written as `make collect` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lada.matrix.cells import cell_layers, expand
from lada.matrix.definition import read_matrix
from lada.matrix.rows import Row, write_rows
from lada.matrix.run_configs import flat, write_configs
from lada.runs import resolve_run
from lada.tabular import read_csv, write_csv

RUN_HEAD = ("arm", "at", "scenario", "dataset", "shots", "seed", "run_id", "size")
SHIPPED = ("arms", "datasets", "methods", "models", "scenarios", "tiers")
RUN_TAIL = ("git", "git_dirty", "amended_from", "code", "run_yaml", "packages", "weights", "machine")


def row(arm: str, value: float, metric: str = "accuracy", **changes: Any) -> Row:
    """A row of scenario 1, lab-math, zero-shot, seed 0, client-1, round 1 but for ``changes``."""
    plain = Row("lab", "1", "lab-math", 0, arm, "", arm, 0, "client-1", "org/model-1b", 1, metric, value)
    return replace(plain, **changes)


def counts(arm: str, other: str, won: int, lost: int, questions: int, **changes: Any) -> list[Row]:
    """The paired rows of a contrast on one party and seed."""
    numbers = {"": (won - lost) / questions, "_won": won, "_lost": lost, "_questions": questions}
    return [row(arm, value, f"paired/{other}{end}", **changes) for end, value in numbers.items()]


def run_rows(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """A made-up run for each cell of the rows."""
    cells = {(one.arm, one.at, one.scenario, one.dataset, one.shots, one.seed): one for one in rows}
    found = []
    for cell, one in cells.items():
        point = f"-{one.at.replace(' ', '-')}" if one.at else ""
        run_id = f"{one.scenario}-{one.arm}-{one.dataset}-{one.shots}shot-s{one.seed}{point}"
        made = ("tiny", "c0ffee", "False", "", "abc", f"yaml{one.seed}", "numpy=2", "w", "x86_64")
        found.append((*cell, run_id, *made))
    return sorted(found)


def write_results(
    folder: Path, name: str, rows: Sequence[Row], *, matrix: Mapping[str, Any], tier: str = "lab"
) -> tuple[Path, Path]:
    """Write configs/matrices/<name>.yaml and both CSV files below ``folder``.

    Returns:
        The folders ``results`` and ``configs``, as `lada.report.results.load` takes them; configs has all of
        the project's too but for its matrices.
    """
    results, configs = folder / "results", folder / "configs"
    (configs / "matrices").mkdir(parents=True, exist_ok=True)
    for kind in SHIPPED:
        if not (configs / kind).exists():
            (configs / kind).symlink_to(Path(__file__).parents[2] / "configs" / kind)
    (configs / "matrices" / f"{name}.yaml").write_text(yaml.safe_dump(dict(matrix), sort_keys=False))
    write_rows(rows, results / tier / f"{name}.csv")
    write_csv(results / tier / f"{name}-runs.csv", (*RUN_HEAD, *RUN_TAIL), run_rows(rows))
    return results, configs


def with_configs(paths: tuple[Path, Path], name: str, tier: str = "lab") -> tuple[Path, Path]:
    """The same results, with the configurations that the matrix gives to its cells."""
    results, configs = paths
    matrix = read_matrix(name, configs, tier=tier, size="tiny")
    columns, rows = read_csv(results / tier / f"{name}-runs.csv")
    ids = {tuple(row[:6]): row[columns.index("run_id")] for row in rows}
    found = {}
    for cell in expand(matrix):
        key = (cell.arm, cell.at, cell.scenario, cell.dataset, str(cell.shots), str(cell.seed))
        if key in ids:
            config = resolve_run(cell_layers(matrix, cell, resolve_run, configs))
            found[ids[key]] = flat(config.model_dump(mode="json"))
    write_configs(found, results / tier / f"{name}-configs.json")
    return paths
