"""Where collected numbers are from: per finished run what it was made with, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lada.layers import read_run, read_yaml
from lada.matrix.local import Run
from lada.matrix.run_configs import flat
from lada.rundir import RunDir, sha256
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


def configs_of(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Run id -> what run.yaml says, as `flat` gives it, of finished runs."""
    return {run.folder.name: flat(read_yaml(RunDir(run.folder).run_yaml)) for run in runs if run.finished}
