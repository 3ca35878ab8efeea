"""Where collected numbers are from: per finished run what it was made with, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lada.errors import DataError
from lada.layers import read_run, read_yaml
from lada.matrix.local import Run
from lada.rundir import RunDir, sha256, write_atomic
from lada.tabular import write_csv

RUN_COLUMNS = (
    "arm",
    "at",
    "scenario",
    "dataset",
    "shots",
    "seed",
    "size",
    "run_id",
    "git",
    "git_dirty",
    "amended_from",
    "code",
    "run_yaml",
    "packages",
    "weights",
    "machine",
)


def provenance_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """What each finished run was made with, sorted by run id."""
    found = []
    for run in runs:
        if not run.finished:
            continue
        made = json.loads(RunDir(run.folder).provenance_json.read_text(encoding="utf-8"))
        packages = " ".join(f"{key}={value}" for key, value in sorted(made["packages"].items()))
        weights = sha256(json.dumps(made["weights"], sort_keys=True).encode())
        found.append(
            {
                "arm": run.cell.arm,
                "at": run.cell.at,
                "scenario": run.cell.scenario,
                "dataset": run.cell.dataset,
                "shots": run.cell.shots,
                "seed": run.cell.seed,
                "size": read_run(run.folder).size,
                "run_id": run.folder.name,
                "git": made["git"],
                "git_dirty": made["git_dirty"],
                "amended_from": " ".join(str(one.get("git")) for one in made.get("amended_from", [])),
                "code": made["code"][:16],
                "run_yaml": made["run_yaml"][:16],
                "packages": packages,
                "weights": weights[:16],
                "machine": made["machine"],
            }
        )
    return sorted(found, key=lambda row: row["run_id"])


def write_provenance(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row per run."""
    write_csv(path, RUN_COLUMNS, ([row[name] for name in RUN_COLUMNS] for row in rows))


def write_configs(runs: Iterable[Run], path: Path) -> None:
    """run.yaml of all finished runs as dotted keys: what they have in common once, the rest by run id."""
    found = {run.folder.name: flat(read_yaml(RunDir(run.folder).run_yaml)) for run in runs if run.finished}
    first = next(iter(found.values()))
    common = {
        key: value
        for key, value in first.items()
        if all(key in one and one[key] == value for one in found.values())
    }
    own = {run: {key: value for key, value in one.items() if key not in common} for run, one in found.items()}
    write_atomic(path, json.dumps({"common": common, "runs": own}, indent=1, sort_keys=True) + "\n")


def read_configs(path: Path) -> dict[str, dict[str, Any]]:
    """What `write_configs` wrote: run id -> dotted key -> value; nothing where there is no such file.

    Raises:
        DataError: it is none.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {run: {**content["common"], **own} for run, own in content["runs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no configurations of runs; `make collect` writes them") from error


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as dotted key -> value; lists and empty mappings are values."""
    return dict(_flat(content, ""))


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
