"""`make plan`: what a run would submit, for one that is there (RUN=) or one that is not; nothing is written.

Stages by groups, what each party asks for, the exact batch script of one stage per party (FULL=1: of every
stage), the driver's command, and what it all comes to at most. For the paper tier in place of that (FULL=1:
after it) one page with each party's memory, and what stages compute, take and send.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.cluster import Resources, cluster_file, find_cluster, read_cluster
from jobs.dry_run import DryRun, dry_run
from jobs.host import ask_lada as _ask_lada
from jobs.paper_page import WIDTH, page_values, show_page
from jobs.paper_plan import Estimate, both_settings, estimate
from jobs.select import find_run
from jobs.submit import add_asked, asked_arguments, asked_files
from jobs.words import duration
from lada.config import RunConfig
from lada.layers import read_run, validate
from lada.plan import Plan, read_plan
from lada.rundir import RunDir, Stage


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `plan`."""
    parser = commands.add_parser("plan", help="what a run would submit; nothing is written")
    add_asked(parser)
    parser.add_argument("--run", help="a run that is there; default: the one that the other options name")
    parser.add_argument("--full", action="store_true", help="the batch script of every stage")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.set_defaults(command=show_plan)


def show_plan(options: argparse.Namespace) -> int:
    """Print a dry run."""
    dry = _existing(options) if options.run else _asked(options)
    page = _page(dry, both=not options.run and options.shots is None)
    scripts = {} if dry.cluster.stages == "inside" else _scripts(dry, full=options.full)
    if options.json:
        content = as_json(dry, scripts) | ({"estimate": page_values(page)} if page else {})
        sys.stdout.write(json.dumps(content) + "\n")
        return 0
    if options.full or not page:
        _show(dry, scripts, Console(highlight=False))
    if page:
        show_page(page, Console(highlight=False, width=WIDTH))
    elif dry.config.tier == "paper":
        sys.stdout.write(
            f"Memory and hours are unknown: cluster '{dry.cluster.name}' states no `planning`.\n"
        )
    return 0


def _page(dry: DryRun, *, both: bool) -> list[Estimate]:
    """Memory and hours of a paper-tier run; none where the cluster's file states no `planning`.

    Raises:
        ConfigError: a model does not fit.
    """
    if dry.config.tier != "paper" or dry.cluster.planning is None:
        return []
    if both:
        return both_settings(dry.config, dry.plan, dry.cluster)
    done = [one.stage for one in dry.stages if one.committed]
    return [estimate(dry.config, dry.plan, dry.cluster, done)]


# -- where it comes from


def _existing(options: argparse.Namespace) -> DryRun:
    run = find_run(options.run, options.runs)
    if options.cluster or not cluster_file(run).is_file():
        cluster = find_cluster(options.cluster)
    else:
        cluster = read_cluster(run)
    return dry_run(run, read_run(run.root), read_plan(run), cluster)


def _asked(options: argparse.Namespace) -> DryRun:
    cluster = find_cluster(options.cluster)
    content = json.loads(_ask_lada(cluster, ["plan", *asked_arguments(options)], asked_files(options)))
    config = validate(RunConfig, content["config"], {})
    run = RunDir(Path(options.runs).resolve() / config.run_id)
    return dry_run(run, config, Plan.model_validate(content["plan"]), cluster)


def _scripts(dry: DryRun, *, full: bool) -> dict[Stage, str]:
    """Batch scripts of every stage, or of each party's first that is left."""
    chosen: dict[str, Stage] = {}
    for one in dry.left:
        chosen.setdefault(one.stage.party, one.stage)
    wanted = [one.stage for one in dry.stages] if full else list(chosen.values())
    return {stage: dry.script(stage) for stage in wanted}


# -- how it is shown


def as_json(dry: DryRun, scripts: dict[Stage, str]) -> dict[str, Any]:
    """The dry run as JSON values."""
    return {
        "run_id": dry.config.run_id,
        "run_dir": str(dry.run.root),
        "exists": dry.run.run_yaml.is_file(),
        "cluster": dry.cluster.name,
        "stages": [
            {
                "stage": str(one.stage),
                "group": one.group,
                "model": one.model,
                "committed": one.committed,
                "resources": resource_values(one.resources),
                "sbatch": scripts.get(one.stage),
            }
            for one in dry.stages
        ],
        "driver": dry.driver_command(),
        "totals": dry.totals(),
    }


def resource_values(resources: Resources) -> dict[str, Any]:
    """What a stage asks for, without the line's own limit."""
    return resources.model_dump(mode="json", exclude={"up_to"})


def _show(dry: DryRun, scripts: dict[Stage, str], console: Console) -> None:
    begun = "" if dry.run.run_yaml.is_file() else " (not begun; nothing was written)"
    console.print(f"{dry.config.run_id} on cluster {dry.cluster.name}{begun}", style="bold", soft_wrap=True)
    console.print("\nA group of stages begins when the one before is committed:")
    console.print(_groups(dry))
    console.print("\nWhat each stage of a party asks for:")
    console.print(_parties(dry))
    console.print(_totals(dry), soft_wrap=True)
    console.print("\nThe driver:", style="bold")
    console.print(shlex.join(dry.driver_command()), soft_wrap=True, markup=False)
    if dry.cluster.stages == "inside":
        console.print("Its stages run inside its own allocation (stages: inside).")
    for stage, text in scripts.items():
        console.print(f"\nThe batch script of {stage}:", style="bold")
        console.print(text.rstrip(), soft_wrap=True, markup=False)


def _groups(dry: DryRun) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("group", "stage", "parties", "left"):
        table.add_column(name, justify="right" if name in ("group", "left") else "left")
    for number in sorted({one.group for one in dry.stages}):
        group = [one for one in dry.stages if one.group == number]
        whole = len(group) == len(dry.plan.parties)
        names = "all" if whole else ", ".join(one.stage.party for one in group)
        left = sum(not one.committed for one in group)
        table.add_row(str(number), group[0].stage.name, names, f"{left} of {len(group)}")
    return table


def _parties(dry: DryRun) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("party", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("nodes", "GPUs", "cores", "memory", "time limit"):
        table.add_column(name, justify="right", no_wrap=True)
    resources = dry.cluster.resources_of(dry.config)
    for party in dry.config.parties:
        asked = resources[party.name]
        table.add_row(
            party.name,
            party.model.rpartition("/")[2],
            str(asked.nodes),
            str(asked.gpus),
            str(asked.cpus),
            f"{asked.memory_gb:g} GB",
            duration(60 * asked.minutes),
        )
    return table


def _totals(dry: DryRun) -> str:
    found = dry.totals()
    return (
        f"\nLeft: {found['stages']:.0f} stages in {found['groups']:.0f} groups. By their time limits at most "
        f"{found['gpu_hours']:.1f} GPU-hours, {found['core_hours']:.1f} core-hours, "
        f"{found['wall_hours']:.1f} hours from begin to end; the queue and second attempts not counted."
    )
