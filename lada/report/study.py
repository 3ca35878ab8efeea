"""Results of a set of lab runs as one CSV and one Markdown table: `make study-table`, after `make study`.

Rows are arms (method, reward profile, local target), columns are parties. Accuracies are means over seeds of
the last round. The error is that of the mean over all questions asked; the seeds share the pre-trained models
but not data, split and order.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lada.config import RunConfig, read_run
from lada.errors import DataError
from lada.plan import read_plan
from lada.results import read_metrics
from lada.rundir import RunDir, write_atomic

COLUMNS = (
    "scenario",
    "dataset",
    "shots",
    "target",
    "arm",
    "party",
    "model",
    "round",
    "metric",
    "seed",
    "value",
)
DIAGNOSTICS = (
    "pairs",
    "coverage",
    "chosen_right",
    "auc_reward",
    "auc_score",
    "reward_std",
    "corr_paper_paired",
)


@dataclass(frozen=True)
class Row:
    """One number of one run."""

    scenario: str
    dataset: str
    shots: int
    target: str
    arm: str
    party: str
    model: str
    round: int
    metric: str
    seed: int
    value: float


def arm_name(config: RunConfig) -> str:
    """What a run is called in the tables: method, profile and additions to the paper."""
    method = config.method if config.method["name"] == "lada" else config.method.get("lada")
    if method is None:
        return config.method_label
    parts = [f"{config.method_label} ({method['reward']['profile']})"]
    if method["nll_weight"]:
        parts.append(f"+ nll {method['nll_weight']:g} [addition]")
    if method["select"]["mode"] != "filter" or not method["use_filter"]:
        mode = method["select"]["mode"] if method["use_filter"] else "all"
        share = ", same share" if method["select"]["replay"] else ""
        parts.append(f"without filter ({mode}{share})")
    if not method["reasoning_distillation"]:
        parts.append("without reasoning distillation")
    if method["server_weights"] == "none":
        parts.append("without sample weights")
    if method["reward"]["profile"] == "likelihood":
        parts[0] += " [addition]"
    return " ".join(parts)


def collect(folders: Iterable[Path]) -> list[Row]:
    """Rows of every finished run below the folders; unfinished ones are left out and named on stderr."""
    found: list[Row] = []
    for folder in sorted(folders):
        run = RunDir(folder)
        if not run.run_yaml.is_file():
            continue
        config = read_run(folder)
        if next(read_plan(run).pending(run.is_committed), None) is not None:
            print(f"left out, not finished: {folder.name}", file=sys.stderr)  # noqa: T201  # a CLI's remark
            continue
        for row in read_metrics(run.metrics_csv):
            found.append(
                Row(
                    scenario=config.scenario,
                    dataset=config.dataset.name,
                    shots=config.shots,
                    target=config.local.target,
                    arm=arm_name(config),
                    party=row["party"],
                    model=row["model"],
                    round=row["round"],
                    metric=row["metric"],
                    seed=config.seed,
                    value=row["value"],
                )
            )
    return sorted(found, key=lambda row: tuple(str(getattr(row, name)) for name in COLUMNS))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Long form, sorted."""
    lines = [",".join(COLUMNS)]
    lines += [",".join(_cell(getattr(row, name)) for name in COLUMNS) for row in rows]
    write_atomic(path, "\n".join(lines) + "\n")


def read_csv(path: Path) -> list[Row]:
    """What `write_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: dict[str, str]) -> Row:
    numbers = {"shots": int(row["shots"]), "round": int(row["round"]), "seed": int(row["seed"])}
    texts = {name: row[name] for name in ("scenario", "dataset", "target", "arm", "party", "model", "metric")}
    return Row(**texts, **numbers, value=float(row["value"]))  # type: ignore[arg-type]  # split by type above


def accuracy_table(rows: Sequence[Row]) -> str:
    """Markdown: one table per scenario, dataset and setting, both local targets in it."""
    blocks = []
    for scenario, dataset, shots in sorted({(row.scenario, row.dataset, row.shots) for row in rows}):
        mine = [r for r in rows if (r.scenario, r.dataset, r.shots) == (scenario, dataset, shots)]
        setting = "one-shot" if shots else "zero-shot"
        blocks.append(f"**Scenario {scenario}, {dataset}, {setting}**\n\n{_arms_table(mine)}")
    return "\n".join(blocks)


def _arms_table(rows: Sequence[Row]) -> str:
    parties = sorted({row.party for row in rows}, key=lambda name: (name == "server", name))
    models = {row.party: row.model.rpartition("/")[2] for row in rows}
    head = " | ".join(f"{party} {models[party]}" for party in parties)
    lines = [f"| local target | arm | {head} | seeds |", "|---" * (len(parties) + 3) + "|"]
    base = [row for row in rows if row.arm == "standalone" and row.target == rows[0].target] or list(rows)
    lines.append(_line("-", "base model (as it came)", base, parties, "accuracy_base"))
    arms = sorted(
        {(row.target, row.arm) for row in rows}, key=lambda key: (key[0], key[1] != "standalone", key[1])
    )
    for target, arm in arms:
        mine = [row for row in rows if (row.target, row.arm) == (target, arm)]
        lines.append(_line(target, arm, mine, parties, "accuracy"))
    return "\n".join(lines) + "\n"


def _line(target: str, arm: str, rows: Sequence[Row], parties: Sequence[str], metric: str) -> str:
    cells, seeds = [], 0
    for party in parties:
        values, errors = _last(rows, party, metric), _last(rows, party, f"{metric}_se")
        seeds = max(seeds, len(values))
        if not values:
            cells.append("-")
            continue
        mean = sum(values) / len(values)
        error = math.sqrt(sum(e * e for e in errors)) / len(values) if errors else 0.0
        cells.append(f"{100 * mean:.1f} ± {100 * error:.1f}")
    return f"| {target} | {arm} | " + " | ".join(cells) + f" | {seeds} |"


def _last(rows: Sequence[Row], party: str, metric: str) -> list[float]:
    """The last round's value of every seed.

    Raises:
        DataError: when two runs claim the same cell, since they must differ in something not shown.
    """
    by_seed: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.party == party and row.metric == metric:
            if row.round in by_seed[row.seed]:
                raise DataError(f"two runs of {row.arm}, seed {row.seed}, {party}: they differ unseen")
            by_seed[row.seed][row.round] = row.value
    return [values[max(values)] for _, values in sorted(by_seed.items())]


def diagnostics_table(rows: Sequence[Row]) -> str:
    """Markdown: what the filter did, means over clients, rounds from 2 on, and seeds."""
    lines = [
        "| local target | arm | " + " | ".join(DIAGNOSTICS) + " |",
        "|---" * (len(DIAGNOSTICS) + 2) + "|",
    ]
    for target, arm in sorted({(row.target, row.arm) for row in rows}):
        cells = []
        for name in DIAGNOSTICS:
            values = [
                row.value
                for row in rows
                if (row.target, row.arm) == (target, arm)
                and row.party != "server"
                and row.round >= 2
                and row.metric == f"filter/server/{name}"
            ]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "-")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {target} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    return f'"{text}"' if "," in text else text


def main() -> int:
    """Collect ``runs/`` (first argument) into results/lab/study.csv and print the tables."""
    runs, target = Path(sys.argv[1]), Path(sys.argv[2])
    if runs.is_dir() and any(runs.iterdir()):
        write_csv(collect(runs.iterdir()), target)
    rows = read_csv(target)
    sys.stdout.write(accuracy_table(rows) + "\nWhat the filters did:\n\n" + diagnostics_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
