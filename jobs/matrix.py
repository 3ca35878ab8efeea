"""`make matrix CLUSTER=…`, `make status MATRIX=…`: all runs of a table, submitted and looked at as one."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.cluster import Cluster, find_cluster
from jobs.host import ensure_image
from jobs.matrix_cells import CellView, look_at_cells, once
from jobs.matrix_text import render
from jobs.submit import add_asked, make_run, submit_driver
from lada.errors import LadaError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `matrix` and `matrix-status`."""
    submit = commands.add_parser("matrix", help="submit what is missing of a matrix")
    _add_options(submit)
    submit.add_argument("--limit", type=int, help="most runs of the matrix queued or running at a time")
    submit.add_argument("--amend", action="store_true", help="go on with runs whose code or run.yaml changed")
    submit.add_argument("--models", help="folder of models, instead of the cluster file's")
    submit.set_defaults(command=_submit)
    status = commands.add_parser("matrix-status", help="the grid of a matrix's runs")
    _add_options(status)
    status.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    status.set_defaults(command=_status)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name in configs/matrices, or a YAML file")
    parser.add_argument("--tier")
    parser.add_argument("--size")
    parser.add_argument("--runs", default="runs", help="folder of all runs, on the shared file system")
    parser.add_argument("--cluster", help="name in configs/clusters, or a YAML file; default: this machine")


def _submit(options: argparse.Namespace) -> int:
    cluster = find_cluster(options.cluster)
    if options.models:
        cluster = cluster.model_copy(update={"models": str(Path(options.models).resolve())})
    ensure_image(cluster)
    found = look_at_cells(options.name, options.runs, tier=options.tier, size=options.size, cluster=cluster)
    views = once(found)
    count = Counter(view.state for view in views)
    room = len(views) if options.limit is None else options.limit - count["running"] - count["queued"]
    done = {view.run_id for view in views if view.state == "done"}
    ready = [
        view for view in views if view.state in ("failed", "begun", "to do") and done.issuperset(view.after)
    ]
    begun, refused = _submit_each(ready, max(0, room), cluster, options)
    left = sum(view.state != "done" for view in views) - count["running"] - count["queued"] - begun
    print(f"{len(views)} runs: {count['done']} done, {begun} submitted now, {left} still to submit.")
    if left > len(refused):
        print("The same command again submits more: once there is room, and what is to be replayed is done.")
    for run_id, error in refused:
        print(f"refused: {run_id}: {error}", file=sys.stderr)
    return refused[0][1].exit_code if refused else 0


def _submit_each(
    ready: Sequence[CellView], room: int, cluster: Cluster, options: argparse.Namespace
) -> tuple[int, list[tuple[str, LadaError]]]:
    """How many runs were submitted, and which could not go on; Slurm's own refusal ends it all."""
    begun, refused = 0, list[tuple[str, LadaError]]()
    for view in ready:
        if begun == room:
            break
        print(f"{begun + 1}/{min(len(ready), room)} {view.run_id}", flush=True)
        try:
            run = make_run(_asked(view, options), cluster)
        except LadaError as error:
            refused.append((view.run_id, error))
            continue
        submit_driver(run, cluster)
        begun += 1
    return begun, refused


def _asked(view: CellView, options: argparse.Namespace) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_asked(parser)
    more = ["--runs", options.runs, *(["--cluster", options.cluster] if options.cluster else [])]
    more += ["--amend"] if options.amend else []
    return parser.parse_args([*view.arguments, *more])


def _status(options: argparse.Namespace) -> int:
    cluster = find_cluster(options.cluster) if options.cluster else None
    views = look_at_cells(options.name, options.runs, tier=options.tier, size=options.size, cluster=cluster)
    if options.json:
        sys.stdout.write(json.dumps(as_json(options.name, views)) + "\n")
    else:
        console = Console(highlight=False)
        console.print(render(options.name, views, console.width))
    return 0


def as_json(name: str, views: Sequence[CellView]) -> dict[str, Any]:
    """The grid as JSON values."""
    keys = ("matrix", "arm", "seed", "at", "run_id", "state")
    runs = [
        {
            **{key: getattr(view, key) for key in keys},
            **dict(zip(("scenario", "dataset", "shots"), view.place, strict=True)),
        }
        for view in views
    ]
    return {"matrix": name, "states": Counter(view.state for view in once(views)), "runs": runs}
