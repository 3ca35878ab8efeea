"""`make plan MATRIX=table2 TIER=paper CLUSTER=…`: hours of all runs of a matrix that are not finished."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.cluster import find_cluster
from jobs.host import ask_lada
from jobs.paper_plan import estimate
from lada.config import RunConfig
from lada.errors import ConfigError
from lada.layers import validate
from lada.plan import Plan


@dataclass(frozen=True)
class RunHours:
    """A run of a matrix: GPU-hours, hours from begin to end, and the GPUs of its largest group of stages."""

    arm: str
    place: tuple[str, str, int]
    gpu_hours: float
    wall_hours: float
    gpus: int


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `matrix-plan`."""
    parser = commands.add_parser("matrix-plan", help="hours of a matrix's runs; nothing is written")
    parser.add_argument("name", help="name in configs/matrices, or a YAML file")
    parser.add_argument("--tier")
    parser.add_argument("--size")
    parser.add_argument("--runs", default="runs", help="folder of runs; what is finished is left out")
    parser.add_argument("--cluster", help="name in configs/clusters, or a YAML file; default: this machine")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.set_defaults(command=_show)


def _show(options: argparse.Namespace) -> int:
    found = hours_of(options)
    if options.json:
        sys.stdout.write(json.dumps(as_json(found)) + "\n")
        return 0
    console = Console(highlight=False)
    console.print(f"{options.name}: {len(found)} runs that are not finished, GPU-hours of all seeds:")
    console.print(render(found))
    wall, most = sum(one.wall_hours for one in found), max((one.gpus for one in found), default=0)
    console.print(
        f"{wall:.0f} hours one run after another, on up to {most} GPUs at a time, without queue. What all "
        "begin with, local training, is counted in every run; it is computed once.",
        soft_wrap=True,
    )
    console.print(f"total: {total(found)} GPU-hours", markup=False)
    return 0


def hours_of(options: argparse.Namespace) -> list[RunHours]:
    """Estimates of all runs that are not finished.

    Raises:
        ConfigError: no such matrix; a tier other than paper; the cluster states no `planning`; a model does
            not fit.
    """
    if options.tier != "paper":
        raise ConfigError("memory and hours of a matrix are known in the paper tier alone: TIER=paper")
    cluster = find_cluster(options.cluster)
    own = [Path(options.name).resolve()] if options.name.endswith((".yaml", ".yml")) else []
    runs = Path(options.runs).resolve()
    arguments = ["matrix", options.name, "--plans", "--runs", str(runs)]
    for key in ("tier", "size"):
        arguments += [f"--{key}", getattr(options, key)] if getattr(options, key) else []
    found = []
    for one in json.loads(ask_lada(cluster, arguments, own, runs=runs)):
        config = validate(RunConfig, one["config"], {})
        hours = estimate(config, Plan.model_validate(one["plan"]), cluster)
        place = (config.scenario, config.dataset.name, config.shots)
        found.append(RunHours(one["arm"], place, hours.gpu_hours, hours.wall_hours, hours.most_gpus))
    return found


def total(found: Sequence[RunHours]) -> int:
    """GPU-hours of all runs, rounded up."""
    return math.ceil(sum(one.gpu_hours for one in found))


def render(found: Sequence[RunHours]) -> Table:
    """A place a line, an arm a column."""
    arms = list(dict.fromkeys(one.arm for one in found))
    table = Table(box=None, pad_edge=False)
    for name in ("scenario", "dataset", "shots", *arms, "all"):
        table.add_column(name, justify="left" if name in ("scenario", "dataset") else "right", no_wrap=True)
    for place in dict.fromkeys(one.place for one in found):
        mine = [one for one in found if one.place == place]
        sums = [sum(one.gpu_hours for one in mine if one.arm == arm) for arm in arms]
        table.add_row(*map(str, place), *(f"{value:.0f}" for value in (*sums, sum(sums))))
    return table


def as_json(found: Sequence[RunHours]) -> dict[str, Any]:
    """The same numbers as JSON values."""
    keys = ("scenario", "dataset", "shots")
    runs = [
        {
            "arm": one.arm,
            **dict(zip(keys, one.place, strict=True)),
            "gpu_hours": one.gpu_hours,
            "wall_hours": one.wall_hours,
            "gpus": one.gpus,
        }
        for one in found
    ]
    return {"total_gpu_hours": total(found), "runs": runs}
