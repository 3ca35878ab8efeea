"""`make cost`: GPU- and core-hours over all attempts of a run, per party and round: useful, wasted, queued.

From Slurm's accounts, or from the ledger where there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.accounts import Use, used
from jobs.select import add_run_options, find_run

LEGEND = (
    "useful: became a commit or a resume point; wasted: the other attempts;\n"
    "running: not over yet; queued: time in the queue, whatever was asked for."
)


@dataclass(frozen=True)
class Sum:
    """Hours of a group of attempts."""

    attempts: int
    gpu_useful: float
    gpu_wasted: float
    gpu_running: float
    cpu_useful: float
    cpu_wasted: float
    cpu_running: float
    queued: float


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `cost`."""
    parser = commands.add_parser("cost", help="GPU- and core-hours over all attempts")
    add_run_options(parser)
    parser.set_defaults(command=show_cost)


def show_cost(options: argparse.Namespace) -> int:
    """Print what a run has used so far."""
    run = find_run(options.run, options.runs)
    uses, source = used(run)
    if options.json:
        content = {"run_id": run.root.name, "run_dir": str(run.root), **as_json(uses, source)}
        sys.stdout.write(json.dumps(content) + "\n")
        return 0
    console = Console(highlight=False)
    unit, seconds = fitting_unit(uses)
    console.print(f"{run.root.name}: {unit}, from {source}", soft_wrap=True)
    console.print(table(uses, per_hour=3600 / seconds))
    console.print(LEGEND, soft_wrap=True)
    return 0


def add_up(uses: Iterable[Use]) -> Sum:
    """Hours of attempts together."""
    listed = list(uses)
    gpu = {kind: sum(one.gpu_hours for one in listed if one.kind == kind) for kind in KINDS}
    cpu = {kind: sum(one.cpu_hours for one in listed if one.kind == kind) for kind in KINDS}
    return Sum(
        attempts=len(listed),
        gpu_useful=gpu["useful"],
        gpu_wasted=gpu["wasted"],
        gpu_running=gpu["running"],
        cpu_useful=cpu["useful"],
        cpu_wasted=cpu["wasted"],
        cpu_running=cpu["running"],
        queued=sum(one.waited for one in listed) / 3600,
    )


def fitting_unit(uses: Iterable[Use]) -> tuple[str, int]:
    """The unit that suits the sum, and its seconds: hours, but for runs that are over in a moment."""
    total = add_up(uses)
    hours = max(total.gpu_useful + total.gpu_wasted, total.cpu_useful + total.cpu_wasted)
    return next(((name, size) for name, size in UNITS if hours * 3600 >= size), UNITS[-1])


UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
KINDS = ("useful", "wasted", "running")


def as_json(uses: Sequence[Use], source: str) -> dict[str, Any]:
    """Sums as JSON values: in all, and per party and round."""
    rows = [
        {"party": party, "round": number, **_rounded(add_up(group))}
        for (party, number), group in by_party_and_round(uses)
    ]
    return {"source": source, "unit": "hours", "total": _rounded(add_up(uses)), "rows": rows}


def _rounded(found: Sum) -> dict[str, float]:
    return {key: round(value, 6) for key, value in asdict(found).items()}


def by_party_and_round(uses: Iterable[Use]) -> list[tuple[tuple[str, int | None], list[Use]]]:
    """Attempts of each party and round, the server first and the driver last."""
    groups: dict[tuple[str, int | None], list[Use]] = {}
    for one in uses:
        groups.setdefault((one.party, one.round), []).append(one)
    order = {"server": 0, "driver": 2}
    return sorted(groups.items(), key=lambda pair: (order.get(pair[0][0], 1), _place(pair[0])))


def _place(key: tuple[str, int | None]) -> tuple[int, int]:
    party, number = key
    digits = party.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0, -1 if number is None else number


def table(uses: Sequence[Use], *, per_hour: float = 1.0) -> Table:
    """The sums in 80 columns, in a unit of which an hour has ``per_hour``."""
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("party", "round"):
        found.add_column(name, no_wrap=True)
    for name in ("tries", *(f"{unit}\n{kind}" for unit in ("GPU", "core") for kind in KINDS), "queued"):
        found.add_column(name, justify="right", no_wrap=True)
    before = ""
    for (party, number), group in by_party_and_round(uses):
        shown = "" if party == before else party
        found.add_row(shown, "" if number is None else f"r{number:02d}", *_cells(add_up(group), per_hour))
        before = party
    found.add_section()
    found.add_row("all", "", *_cells(add_up(uses), per_hour), style="bold")
    return found


def _cells(one: Sum, per_hour: float) -> list[str]:
    count, *hours = asdict(one).values()
    return [str(count), *(f"{value * per_hour:.1f}" if value else "-" for value in hours)]
