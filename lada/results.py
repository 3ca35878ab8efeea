"""metrics.csv of a run: long form, rebuilt from the commits alone and sorted.

No times and no attempts stand in it (those are in ledger.jsonl and timings.csv), so a run that was killed and
resumed has the same bytes as one that was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lada.communication import traffic
from lada.config import RunConfig
from lada.diagnostics import filter_metrics
from lada.errors import DataError
from lada.faults import crash_point
from lada.ledger import Ledger
from lada.manifest import Manifest, read_manifest
from lada.plan import Plan
from lada.records import SampleLog, read_jsonl
from lada.rundir import RunDir, Stage, write_atomic
from lada.tabular import csv_text, read_records

COLUMNS = (
    "run_id",
    "tier",
    "scenario",
    "dataset",
    "shots",
    "method",
    "seed",
    "round",
    "party",
    "model",
    "metric",
    "value",
)
METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.jsonl"
Row = tuple[int, str, str, float]
"""round, party, metric, value."""


def write_metrics(run: RunDir, config: RunConfig, plan: Plan) -> None:
    """Rebuild metrics.csv and timings.csv from what is committed at present."""
    head = (
        plan.run_id,
        config.tier,
        config.scenario,
        config.dataset.name,
        config.shots,
        config.method_label,
        config.seed,
    )
    rows = (
        (*head, number, party, config.party(party).model, metric, repr(float(value)))
        for number, party, metric, value in sorted(_rows(run, plan))
    )
    text = csv_text(COLUMNS, rows)
    crash_point("metrics.before-replace")
    _write_changed(run.metrics_csv, text)
    crash_point("metrics.replaced")
    _write_changed(run.timings_csv, _timings(run))


def _write_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, numbers as numbers.

    Raises:
        DataError: when the file is missing or has other columns.
    """
    return [_typed(path, number, row) for number, row in enumerate(read_records(path, COLUMNS), start=2)]


def _typed(path: Path, number: int, found: dict[str, str]) -> dict[str, Any]:
    try:
        numbers = {"round": int(found["round"]), "seed": int(found["seed"]), "value": float(found["value"])}
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    return {**found, **numbers}


def _rows(run: RunDir, plan: Plan) -> Iterator[Row]:
    answers = {item.id: item.answer for item in run.sealed_items()}
    seen: dict[tuple[str, str], set[str]] = {}
    sums: Counter[tuple[int, str, str]] = Counter()
    for group in plan.groups():
        for stage in group:
            if not run.is_committed(stage):
                continue
            folder = run.commit(stage)
            manifest = read_manifest(folder, stage.party, stage.name)
            yield from _stage_metrics(folder, stage)
            yield from _bytes(manifest, stage)
            for name, value in traffic(folder, manifest, stage, plan.parties):
                sums[stage.round, stage.party, name] += value
            yield from _diagnostics(folder, stage, answers, seen)
    yield from ((*key, float(value)) for key, value in sums.items())


def _stage_metrics(folder: Path, stage: Stage) -> Iterator[Row]:
    path = folder / METRICS_FILE
    if path.is_file():
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            yield stage.round, stage.party, name, value


def _bytes(manifest: Manifest, stage: Stage) -> Iterator[Row]:
    """Bytes that a stage sent, by kind; a message to ``all`` counts once here (broadcast-once)."""
    totals: dict[str, int] = {}
    for entry in manifest.files:
        if entry.path.startswith("public/"):
            recipient = entry.path.split("/")[1]
            name = f"bytes_sent/{manifest.stage.split('-', 1)[1]}/{recipient}/{entry.kind}"
            totals[name] = totals.get(name, 0) + entry.bytes
    for name, total in totals.items():
        yield stage.round, stage.party, name, float(total)


def _diagnostics(
    folder: Path, stage: Stage, answers: Mapping[str, str], seen: dict[tuple[str, str], set[str]]
) -> Iterator[Row]:
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return
    logs = read_jsonl(SampleLog, path)
    for partner in sorted({log.partner for log in logs}):
        used = seen.setdefault((stage.party, partner), set())
        mine = [log for log in logs if log.partner == partner]
        for name, value in filter_metrics(mine, answers, used).items():
            yield stage.round, stage.party, f"filter/{partner}/{name}", value


def _timings(run: RunDir) -> str:
    lines = ["stage,seconds"]
    for event in Ledger(run.ledger_jsonl).read():
        if event.get("event") == "committed":
            lines.append(f"{event['stage']},{event['seconds']}")
    return "\n".join(lines) + "\n"
