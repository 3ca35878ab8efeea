"""The table that ends a run: accuracy per party before, after local training and after the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lada.matrix.rows import ASIDE
from lada.results import read_metrics

LAB_NOTE = "Lab tier: tiny stand-ins of the models, pre-trained in this project. No real weights were run."
REHEARSAL_NOTE = "Rehearsal: random weights in the real models' shapes in small. No figure means anything."
TARGET_NOTE = (
    "`local only` depends on local.target: with answer_only it costs the reasoning that distillation brings\n"
    "back; compare with the model as it came, and with local.target=self_rationale (README, Results)."
)
FOREIGN_NOTE = "These models were not trained for this dataset: expect accuracies near chance (25 %)."
Values = Mapping[tuple[int, str, str], float]


def print_summary(metrics_csv: Path, console: Console) -> None:
    """Print the summary table of a run, the bytes that were exchanged, and where the files are.

    Raises:
        DataError: when metrics.csv is missing or has other columns.
    """
    rows = read_metrics(metrics_csv)
    if not rows:
        console.print(f"{metrics_csv.parent}: nothing is committed yet")
        return
    head = rows[0]
    values: Values = {(row["round"], row["party"], row["metric"]): row["value"] for row in rows}
    models = {row["party"]: row["model"] for row in rows}
    console.print(_table(head, values, models, last_round(rows)))
    for line in _footer(head, rows, metrics_csv):
        console.print(line, soft_wrap=True, highlight=False)


def last_round(rows: Sequence[Mapping[str, Any]]) -> int:
    """The last round in which an accuracy was measured."""
    last: int = max(row["round"] for row in rows if row["metric"] == "accuracy")
    return last


def _table(head: Mapping[str, Any], values: Values, models: Mapping[str, str], last: int) -> Table:
    title = (
        f"scenario {head['scenario']}, {head['method']}, {head['dataset']}, "
        f"{'one' if head['shots'] == '1' else 'zero'}-shot, seed {head['seed']}, {head['tier']} tier"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("party", "model"):
        table.add_column(name, no_wrap=True)
    after = f"after\nround {last}" if last else "after\nrounds"
    for name in ("as it\ncame", "local\nonly", after, "no\nletter", "sent\nkB"):
        table.add_column(name, justify="right", no_wrap=True)
    for party, model in sorted(models.items(), key=lambda pair: (pair[0] != "server", pair[0])):
        local = _percent(values, 0, party, "accuracy") if party != "server" else "-"
        table.add_row(
            party,
            model.rpartition("/")[2],
            _percent(values, 0, party, "accuracy_base"),
            local,
            _percent(values, last, party, "accuracy") if last else "-",
            _plain(values.get((last, party, "unparsed_rate"))),
            f"{sent(values, party) / 1000:,.0f}",
        )
    return table


def sent(values: Values, party: str) -> float:
    """Bytes of texts and ids that a party sent (the paper's measure); rewards and adapters left out."""
    return sum(value for key, value in values.items() if key[1] == party and _is_text(key[2]))


def _is_text(metric: str) -> bool:
    """Of the paper's measure of communication: texts, ids and what stands for them."""
    return metric.startswith("bytes_sent/") and metric.rsplit("/", 1)[1] not in ASIDE


def _footer(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metrics_csv: Path) -> list[str]:
    kinds: dict[str, float] = {}
    for row in rows:
        if row["metric"].startswith("bytes_sent/"):
            kind = row["metric"].rsplit("/", 1)[1]
            kinds[kind] = kinds.get(kind, 0.0) + row["value"]
    listed = ", ".join(f"{kind} {_kilobytes(total)}" for kind, total in sorted(kinds.items()))
    lines = [
        "Accuracy in per cent ± standard error; no letter: per cent of answers; sent: texts and ids.",
        f"Exchanged in all: {listed or 'nothing'}.",
    ]
    if head["tier"] == "rehearsal":
        lines.append(REHEARSAL_NOTE)
    if head["tier"] == "lab":
        lines += [LAB_NOTE, TARGET_NOTE]
        if not head["dataset"].startswith("lab-"):
            lines.append(FOREIGN_NOTE)
    return [*lines, f"Results: {metrics_csv}", f"Everything else: {metrics_csv.parent}"]


def _percent(values: Values, number: int, party: str, metric: str) -> str:
    value = values.get((number, party, metric))
    error = values.get((number, party, f"{metric}_se"))
    if value is None:
        return "-"
    if error is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ±{100 * error:.{1 if error < 0.0995 else 0}f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _kilobytes(count: float) -> str:
    return f"{count / 1000:,.0f} kB"
