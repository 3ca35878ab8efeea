"""`make doctor [CLUSTER=name] [WAIT=seconds]`: whether runs can work here; one line a check, with the mend.

Exit code 0 where nothing failed, warnings or not; 14 else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jobs.check_folder import check_runs_folder
from jobs.check_image import (
    check_binds,
    check_host,
    check_image_file,
    check_inside,
    check_models,
    check_program,
)
from jobs.check_node import check_node
from jobs.check_slurm import check_slurm
from jobs.check_staged import check_staged
from jobs.cluster import Cluster, Patience, find_cluster
from jobs.finding import Finding, fail
from lada.errors import ConfigError

BROKEN = 14
WAIT_SECONDS = 60.0
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `doctor`."""
    parser = commands.add_parser("doctor", help="whether runs can work here, and what to mend")
    parser.add_argument("--cluster", help="name in configs/clusters; default: the cluster of this host")
    parser.add_argument("--runs", default="runs", help="folder of all runs, on the shared file system")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        help="seconds for the job on a compute node; 0: no such job",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.set_defaults(command=examine)


def examine(options: argparse.Namespace) -> int:
    """Run every check, print each as it is done."""
    console = Console(highlight=False)
    found = []
    for finding in findings(options.cluster, Path(options.runs), wait=options.wait):
        found.append(finding)
        if not options.json:
            console.print(line(finding), soft_wrap=True)
    failed = sum(one.level == "fail" for one in found)
    if options.json:
        content = {"ok": not failed, "checks": [asdict(one) for one in found]}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        warned = sum(one.level == "warn" for one in found)
        console.print(f"{len(found)} checks, {failed} failed, {warned} warnings")
    return BROKEN if failed else 0


def findings(name: str | None, runs: Path, *, wait: float) -> Iterator[Finding]:
    """Every check, cheap ones first."""
    yield check_host()
    try:
        cluster = find_cluster(name)
    except ConfigError as error:
        yield fail(
            "cluster file", str(error), "CLUSTER=<name>, or copy configs/clusters/a800.yaml and fill it in"
        )
        yield from check_runs_folder(runs, free_gb=Patience().free_gb)
        return
    yield from _of_cluster(cluster, runs, wait=wait)


def _of_cluster(cluster: Cluster, runs: Path, *, wait: float) -> Iterator[Finding]:
    folder = check_runs_folder(runs, free_gb=cluster.patience.free_gb)
    yield from folder
    slurm = list(check_slurm(cluster))
    yield from slurm
    tools = [check_program(cluster), check_image_file(cluster), check_binds(cluster), check_models(cluster)]
    yield from tools
    yield from check_staged(cluster)
    broken = {one.subject for one in (*folder, *tools) if one.level == "fail"}
    if broken & {"runs folder", "Apptainer", "image", "binds"}:
        return
    if shutil.which(cluster.apptainer[0]):  # where only `setup` loads it, the node's job tells
        yield from check_inside(cluster, runs)
    if wait > 0 and len(slurm) > 1:  # Slurm answers
        yield from check_node(cluster, runs, wait=wait)


def line(found: Finding) -> Text:
    """A finding for a person: a word, not its colour alone, says how it is."""
    text = Text(f"{found.level:5}", style=COLOURS[found.level])
    text.append(f"{found.subject:17}{found.text}", style="default")
    if found.mend:
        text.append(f"\n      -> {found.mend}", style="bold")
    return text
