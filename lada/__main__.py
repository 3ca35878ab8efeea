"""`python -m lada …`: what runs on a workstation and inside the image.

run     make a run's folder and drive it in this process; ends with a table
init    make a run's folder only and print its path
step    one stage of one party
show    the table of a run
data    parse a dataset file into one line per record
methods what METHOD= takes, with options, defaults and meanings
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lada.config import layers
from lada.driver import Driver
from lada.errors import LadaError
from lada.lease import lease
from lada.method import describe_methods
from lada.plan import read_plan
from lada.progress import StageReporter, live_display
from lada.report.summary import print_summary
from lada.rundir import RunDir
from lada.runs import open_run
from lada.stage import InProcess, run_stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code that README lists."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except LadaError as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return code


def _run(options: argparse.Namespace) -> int:
    console = Console()
    run, remarks = _open(options)
    for remark in remarks:
        console.print(remark, soft_wrap=True, highlight=False)
    console.print(f"Run folder: {run.root}", soft_wrap=True, highlight=False)
    with lease(run.lease), live_display(console) as live:

        def reporter(stage: object, attempt: str) -> StageReporter:
            found = next(one for group in plan.groups() for one in group if one == stage)
            return StageReporter(str(found), run.log(found.party, found, attempt), live)

        plan = read_plan(run)
        report = console.print if live is None else live.console.print
        driver = Driver(run, InProcess(run, reporter), report=lambda line: report(line, highlight=False))
        # Also where all is committed: a kill may have come between the last commit and the results.
        worked = driver.drive(rounds=options.until_round)
    print_summary(run.metrics_csv, console)
    if not worked:
        console.print("Nothing is left to do: every stage of this run is committed.")
    return 0


def _init(options: argparse.Namespace) -> int:
    run, remarks = _open(options)
    for remark in remarks:
        print(remark, file=sys.stderr)
    print(run.root)
    return 0


def _open(options: argparse.Namespace) -> tuple[RunDir, list[str]]:
    settings = list(options.set)
    if options.data is not None:
        settings.append(f"dataset.file={Path(options.data).resolve()}")
    if options.shots is not None:
        settings.append(f"shots={options.shots}")
    if options.seed is not None:
        settings.append(f"seed={options.seed}")
    found = layers(
        scenario=options.scenario,
        method=options.method,
        dataset=options.dataset,
        size=options.size,
        tier=options.tier,
        settings=settings,
    )
    return open_run(found, Path(options.runs), amend=options.amend, fresh=options.fresh)


def _step(options: argparse.Namespace) -> int:
    run = RunDir(Path(options.run))
    stage = read_plan(run).find(options.party, options.stage)
    reporter = StageReporter(str(stage), run.log(stage.party, stage, options.attempt))
    first = run_stage(run, stage, attempt=options.attempt, reporter=reporter)
    print(f"{stage} {'committed' if first else 'was committed by another attempt before'}")
    return 0


def _show(options: argparse.Namespace) -> int:
    print_summary(RunDir(Path(options.run)).metrics_csv, Console())
    return 0


def _data(options: argparse.Namespace) -> int:
    from lada.data.cli import write_parsed

    counts = write_parsed(Path(options.file), options.format, Path(options.out))
    for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        print(f"{count:8d} {reason}")
    print(f"written: {options.out}")
    return 0


def _methods(options: argparse.Namespace) -> int:
    for line in describe_methods():
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lada", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", _run, "make a run's folder and drive it in this process"),
        ("init", _init, "make a run's folder and print its path"),
    ):
        one = commands.add_parser(name, help=text)
        one.set_defaults(command=function)
        add_run_options(one)
        if name == "run":
            one.add_argument("--until-round", type=int, help="stop after this round")
    step = commands.add_parser("step", help="one stage of one party")
    step.set_defaults(command=_step)
    step.add_argument("--run", required=True, help="the run's folder")
    step.add_argument("--party", required=True)
    step.add_argument("--stage", required=True, help="e.g. r01-learn")
    step.add_argument("--attempt", default=f"99-{os.urandom(4).hex()}")
    show = commands.add_parser("show", help="the table of a run")
    show.set_defaults(command=_show)
    show.add_argument("run", help="the run's folder")
    _add_data(commands)
    methods = commands.add_parser("methods", help="what METHOD= takes")
    methods.set_defaults(command=_methods)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a run; the same for `run`, `init` and the launchers of jobs/."""
    parser.add_argument("--scenario", default="1", help="name in configs/scenarios, or a YAML file")
    parser.add_argument("--method", default="lada")
    parser.add_argument("--dataset", default="lab-math", help="name in configs/datasets")
    parser.add_argument("--data", help="local file of a dataset that is read from one")
    parser.add_argument("--shots", type=int, choices=(0, 1))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--size", default="quick", help="tiny, quick or paper")
    parser.add_argument("--tier", default="lab", help="name in configs/tiers")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--set",
        action="extend",
        default=[],
        type=shlex.split,
        metavar="a.b=c",
        help="override values, several in one string are split like a shell does",
    )
    parser.add_argument("--amend", action="store_true", help="go on although code or packages changed")
    parser.add_argument("--fresh", action="store_true", help="set an existing run aside and start anew")


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="dataset files")
    kinds = data.add_subparsers(required=True, metavar="COMMAND")
    parse = kinds.add_parser("parse", help="one line per record, accepted or dropped and why")
    parse.set_defaults(command=_data)
    parse.add_argument("file")
    parse.add_argument("--format", required=True, choices=("mathinstruct", "cot_collection", "aqua_rat"))
    parse.add_argument("--out", required=True, help="JSON lines to write")


if __name__ == "__main__":
    sys.exit(main())
