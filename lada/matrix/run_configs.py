"""``<matrix>-configs.json``: what was in run.yaml of the runs behind collected numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lada.errors import DataError
from lada.rundir import write_atomic


def write_configs(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Configurations by run id: what all have in common once, the rest by run."""
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
