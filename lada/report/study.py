"""Markdown tables of a matrix's collected rows: `make study-table`. Reads CSV files only.

Accuracies are means over seeds of the last round; ``±`` is the standard error of that mean over all questions
asked, seeds taken together. Seeds change data, split and order; the pre-trained lab models stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lada.config import SERVER
from lada.errors import DataError
from lada.matrix.definition import Matrix
from lada.matrix.rows import Row, bytes_by_direction

DIAGNOSTICS = ("pairs", "coverage", "chosen_right", "auc_reward", "auc_score", "reward_std")
BASE = "accuracy_base"


def accuracy_tables(matrix: Matrix, rows: Sequence[Row]) -> str:
    """One table per scenario, dataset and setting: an arm a row, a party a column, bytes beside."""
    blocks = []
    for scenario, dataset, shots in sorted({(row.scenario, row.dataset, row.shots) for row in rows}):
        mine = [row for row in rows if (row.scenario, row.dataset, row.shots) == (scenario, dataset, shots)]
        setting = "one-shot" if shots else "zero-shot"
        blocks.append(f"**Scenario {scenario}, {dataset}, {setting}**\n\n{_accuracy_table(matrix, mine)}")
    return "\n".join(blocks)


def _accuracy_table(matrix: Matrix, rows: Sequence[Row]) -> str:
    parties = party_names(rows)
    clients = [party for party in parties if party != SERVER]
    models = {row.party: row.model.rpartition("/")[2] for row in rows}
    head = [f"{party} {models[party]}" for party in clients] + ["clients' mean", f"server {models[SERVER]}"]
    lines = _head(["arm", *head, "kB up", "kB down", "seeds"])
    lines.append(_line(["base model (as it came)", *_cells(rows, clients, BASE), "0", "0", _seeds(rows)]))
    for arm in matrix.arms:
        mine = [row for row in rows if row.arm == arm]
        if mine:
            cells = [*_cells(mine, clients, "accuracy"), *_kilobytes(mine, len(clients)), _seeds(mine)]
            lines.append(_line([matrix.label(arm), *cells]))
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Row], clients: Sequence[str], metric: str) -> list[str]:
    found = [_mean(rows, [party], metric) for party in clients]
    return [*found, _mean(rows, clients, metric), _mean(rows, [SERVER], metric)]


def _mean(rows: Sequence[Row], parties: Sequence[str], metric: str, *, signed: bool = False) -> str:
    """Mean and standard error in per cent over parties and seeds; every party weighs the same."""
    values = [value for party in parties for value in last(rows, party, metric)]
    errors = [value for party in parties for value in last(rows, party, f"{metric}_se")]
    if not values or len(values) != len(errors):
        return "-"
    mean, error = sum(values) / len(values), math.sqrt(sum(one * one for one in errors)) / len(errors)
    # Rounded first: no difference is -0.0.
    points = round(100 * mean, 1) + 0.0
    return f"{points:{'+' if signed and points else ''}.1f} ± {100 * error:.1f}"


def last(rows: Iterable[Row], party: str, metric: str) -> list[float]:
    """The last round's value of every seed, in their order; the base model's are those of one arm.

    Raises:
        DataError: two runs of one arm and seed claim the same cell.
    """
    found: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        if (row.party, row.metric) == (party, metric):
            rounds = found.setdefault((row.arm, row.seed), {})
            if row.round in rounds:
                raise DataError(f"two runs of {row.arm}, seed {row.seed}, {party}: they differ unseen")
            rounds[row.round] = row.value
    by_seed = {seed: rounds[max(rounds)] for (_, seed), rounds in sorted(found.items())}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _kilobytes(rows: Sequence[Row], clients: int) -> list[str]:
    """Texts, ids, logits, votes and questions as sent: one client up, the server to one client down."""
    seeds = sorted({row.seed for row in rows})
    totals = [bytes_by_direction([row for row in rows if row.seed == seed], clients) for seed in seeds]
    return [f"{sum(one[way] for one in totals) / len(totals) / clients / 1e3:.0f}" for way in ("up", "down")]


def _seeds(rows: Iterable[Row]) -> str:
    return str(len({row.seed for row in rows}))


def contrast_table(matrix: Matrix, rows: Sequence[Row]) -> str:
    """Paired differences in points: an arm minus another on the same questions, by scenario."""
    places = sorted({(row.scenario, row.dataset, row.shots) for row in rows})
    names = [f"{_named(place, places)}: {who}" for place in places for who in ("clients", "server")]
    lines = _head(["arm minus other", *names])
    for first, second in matrix.contrasts:
        cells = []
        for place in places:
            mine = [
                row for row in rows if (row.scenario, row.dataset, row.shots) == place and row.arm == first
            ]
            clients = [party for party in party_names(mine) if party != SERVER]
            for parties in (clients, [SERVER]):
                cells.append(_mean(mine, parties, f"paired/{second}", signed=True))
        if any(cell != "-" for cell in cells):
            lines.append(_line([f"{matrix.label(first)} − {matrix.label(second)}", *cells]))
    return "\n".join(lines) + "\n"


def _named(place: tuple[str, str, int], places: Sequence[tuple[str, str, int]]) -> str:
    """A place by what differs between places."""
    scenario, dataset, shots = place
    parts = [f"scenario {scenario}"]
    parts += [dataset] if len({one[1] for one in places}) > 1 else []
    parts += [f"{shots}-shot"] if len({one[2] for one in places}) > 1 else []
    return ", ".join(parts)


def diagnostics_table(matrix: Matrix, rows: Sequence[Row]) -> str:
    """What selection did on the clients: means over scenarios, clients, rounds from 2 on, and seeds."""
    lines = _head(["arm", *DIAGNOSTICS])
    for arm in matrix.arms:
        mine = [row for row in rows if row.arm == arm and row.party != SERVER and row.round >= 2]
        means = [_average(mine, f"filter/server/{name}") for name in DIAGNOSTICS]
        if any(one != "-" for one in means):
            lines.append(_line([matrix.label(arm), *means]))
    return "\n".join(lines) + "\n"


def _average(rows: Iterable[Row], metric: str) -> str:
    values = [row.value for row in rows if row.metric == metric]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def grid_table(matrix: Matrix, rows: Sequence[Row]) -> str:
    """Clients' mean accuracy at every point of a grid; each arm's best, which it then runs with, is bold."""
    points = list(dict.fromkeys(row.at for row in rows))
    lines = _head(["arm", *points])
    for arm in matrix.arms:
        best = best_point(rows, arm)
        cells = [_grid_cell(_score(rows, arm, at), is_best=at == best) for at in points]
        lines.append(_line([matrix.label(arm), *cells]))
    return "\n".join(lines) + "\n"


def best_point(rows: Sequence[Row], arm: str) -> str | None:
    """The point of the grid with the highest mean accuracy of the clients; ties: the first; None: no run."""
    points = dict.fromkeys(row.at for row in rows if row.arm == arm)
    return max(points, key=lambda at: _score(rows, arm, at), default=None)


def _score(rows: Sequence[Row], arm: str, at: str) -> float:
    return clients_mean([row for row in rows if (row.arm, row.at) == (arm, at)])


def clients_mean(rows: Sequence[Row]) -> float:
    """Mean over clients and seeds of the last round's accuracy; NaN where there is none."""
    clients = [party for party in party_names(rows) if party != SERVER]
    values = [value for party in clients for value in last(rows, party, "accuracy")]
    return sum(values) / len(values) if values else math.nan


def party_names(rows: Iterable[Row]) -> list[str]:
    """Clients in order, the server last."""
    return sorted({row.party for row in rows}, key=lambda name: (name == SERVER, name))


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---" * len(cells) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _grid_cell(value: float, *, is_best: bool) -> str:
    if math.isnan(value):
        return "-"
    return f"**{100 * value:.1f}**" if is_best else f"{100 * value:.1f}"
