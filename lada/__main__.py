"""`python -m lada …`: what runs on a workstation and inside the image.

run     make a run's folder and drive it in this process; ends with a table
init    make a run's folder only and print its path
plan    configuration and plan of a run as JSON; writes nothing
check   whether a run may go on with this code, these packages, weights and this image
step    one stage of one party
show    the table of a run
matrix  the runs of configs/matrices/<name>.yaml that are not finished yet
collect what a matrix's finished runs measured, as CSV
sweep   a matrix made here: one method over all combinations of some options' values
data    parse a dataset file into one line per record
methods what METHOD= takes, with options, defaults and meanings
rehearsal-models  random stand-ins of a scenario's real models, for TIER=rehearsal
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lada.errors import end, exit_code
from lada.matrix.commands import add_commands

# Everything else is imported by the commands: a stage must heed warnings before torch takes its seconds.
if TYPE_CHECKING:
    from lada.layers import Layer
    from lada.rundir import RunDir

NO_REUSE = "neither take local training from earlier runs nor keep it for later ones"
FACTS = "JSON of what the host knows, where this runs in an image: its digest, git, command line"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code that README lists."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.command(options))


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from lada.driver import Driver
    from lada.lease import lease
    from lada.progress import StageReporter, file_log, live_display
    from lada.report.summary import print_summary
    from lada.rundir import Stage
    from lada.stage import InProcess

    console = Console()
    run, remarks = _open(options)
    for remark in remarks:
        console.print(remark, soft_wrap=True, highlight=False)
    console.print(f"Run folder: {run.root}", soft_wrap=True, highlight=False)
    with lease(run.lease), live_display(console) as live:

        def reporter(stage: Stage, attempt: str) -> StageReporter:
            return StageReporter(str(stage), file_log(run.log(stage.party, stage, attempt)), live)

        report = console.print if live is None else live.console.print
        driver = Driver(
            run,
            InProcess(run, reporter),
            report=lambda line: report(line, highlight=False),
            reuse=not options.no_reuse,
        )
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
    from lada.runs import open_run

    facts = None if options.facts is None else json.loads(options.facts)
    return open_run(
        _layers(options), Path(options.runs), amend=options.amend, fresh=options.fresh, facts=facts
    )


def _layers(options: argparse.Namespace) -> list[Layer]:
    from lada.layers import layers

    settings = list(options.set)
    if options.data is not None:
        settings.append(f"dataset.file={Path(options.data).resolve()}")
    if options.shots is not None:
        settings.append(f"shots={options.shots}")
    if options.seed is not None:
        settings.append(f"seed={options.seed}")
    return layers(
        scenario=options.scenario,
        method=options.method,
        dataset=options.dataset,
        size=options.size,
        tier=options.tier,
        settings=settings,
    )


def _plan(options: argparse.Namespace) -> int:
    from lada.method import load_method, make_plan
    from lada.runs import resolve_run

    config = resolve_run(_layers(options))
    plan = make_plan(config, load_method(config.method))
    content = {"config": config.model_dump(mode="json"), "plan": plan.model_dump(mode="json")}
    print(json.dumps({"run_id": config.run_id, **content}))
    return 0


def _check(options: argparse.Namespace) -> int:
    from lada.rundir import RunDir
    from lada.runs import check_run

    facts = None if options.facts is None else json.loads(options.facts)
    for remark in check_run(RunDir(Path(options.run)), amend=options.amend, facts=facts):
        print(remark, file=sys.stderr)
    return 0


def _step(options: argparse.Namespace) -> int:
    with _heeding_warnings() as warned:
        from lada.gpus import check_gpus
        from lada.plan import read_plan
        from lada.progress import StageReporter, stream_log
        from lada.provenance import check_stage
        from lada.ranks import joined
        from lada.rundir import RunDir
        from lada.stage import follow_stage, run_stage

        run = RunDir(Path(options.run))
        stage = read_plan(run).find(options.party, options.stage)
        check_stage(run)
        check_gpus(stage.party)
        with joined(options.zero) as ranks:
            if not ranks.leads:
                follow_stage(run, stage, ranks)
                return 0
            log = stream_log(sys.stdout)
            first = run_stage(
                run,
                stage,
                attempt=options.attempt,
                reporter=StageReporter(str(stage), log),
                log=log,
                warned=warned,
                divisor=options.micro_batch_divisor,
                ranks=ranks,
            )
            log(f"{stage} {'committed' if first else 'was committed by another attempt before'}")
    return 0


@contextlib.contextmanager
def _heeding_warnings() -> Iterator[Callable[[], bool]]:
    """From here on USR2 ends nothing: it sets what the yielded function tells, however often it comes.

    A launcher may start this process with USR2 blocked, so that none is lost or deadly before this.
    """
    arrived: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: arrived.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a handler would not outlive the interpreter's end


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from lada.report.summary import print_summary
    from lada.rundir import RunDir

    print_summary(RunDir(Path(options.run)).metrics_csv, Console())
    return 0


def _data(options: argparse.Namespace) -> int:
    from lada.data.cli import write_parsed

    counts = write_parsed(Path(options.file), options.format, Path(options.out))
    for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        print(f"{count:8d} {reason}")
    print(f"written: {options.out}")
    return 0


def _rehearsal_models(options: argparse.Namespace) -> int:
    from lada.rehearsal import write_models
    from lada.staged import models_of

    models, folder = models_of(options.scenario), Path(options.models)
    folder.mkdir(parents=True, exist_ok=True)
    made = write_models(models, folder, shard_bytes=options.shard_bytes)
    print(
        f"{len(made)} of {len(models)} rehearsal models made, {len(models) - len(made)} were there: {folder}"
    )
    return 0


def _methods(options: argparse.Namespace) -> int:
    from lada.method import describe_methods

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
        ("plan", _plan, "a run's configuration and plan as JSON; nothing is written"),
    ):
        one = commands.add_parser(name, help=text)
        one.set_defaults(command=function)
        add_run_options(one)
        if name == "run":
            one.add_argument("--until-round", type=int, help="stop after this round")
            one.add_argument("--no-reuse", action="store_true", help=NO_REUSE)
    check = commands.add_parser("check", help="whether a run may go on")
    check.set_defaults(command=_check)
    check.add_argument("--run", required=True, help="the run's folder")
    check.add_argument("--amend", action="store_true", help="go on although something changed")
    check.add_argument("--facts", help=FACTS)
    step = commands.add_parser("step", help="one stage of one party")
    step.set_defaults(command=_step)
    step.add_argument("--run", required=True, help="the run's folder")
    step.add_argument("--party", required=True)
    step.add_argument("--stage", required=True, help="e.g. r01-learn")
    step.add_argument("--attempt", default=f"99-{os.urandom(4).hex()}")
    step.add_argument(
        "--micro-batch-divisor",
        type=_power_of_two,
        default=1,
        metavar="N",
        help="1, 2, 4, …: smaller micro-batches and fewer decoded rows for want of memory",
    )
    step.add_argument(
        "--zero",
        type=int,
        choices=(0, 1, 2, 3),
        default=0,
        help="what ranks that torchrun started share: 1 optimiser states, 2 gradients too, 3 weights too",
    )
    show = commands.add_parser("show", help="the table of a run")
    show.set_defaults(command=_show)
    show.add_argument("run", help="the run's folder")
    _add_data(commands)
    add_commands(commands, add_run_options)
    methods = commands.add_parser("methods", help="what METHOD= takes")
    methods.set_defaults(command=_methods)
    _add_rehearsal(commands)
    return parser


def _add_rehearsal(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = commands.add_parser("rehearsal-models", help="random stand-ins of a scenario's real models")
    models.set_defaults(command=_rehearsal_models)
    models.add_argument("--scenario", nargs="+", default=["1"], help="names in configs/scenarios")
    models.add_argument("--models", required=True, help="folder, one sub-folder per model is made in it")
    models.add_argument("--shard-bytes", type=int, help="cut weights into files of this size")


def _power_of_two(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text).bit_count() != 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not 1, 2, 4, 8, …")
    return int(text)


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
    parser.add_argument(
        "--amend", action="store_true", help="go on although code, packages, image or run.yaml changed"
    )
    parser.add_argument("--facts", help=FACTS)
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
    end(main())
