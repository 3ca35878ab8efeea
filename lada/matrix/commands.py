"""`python -m lada matrix`, `collect` and `sweep`: many runs, and what they measured as CSV."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lada.matrix.definition import Matrix
    from lada.matrix.local import Run

# Everything else is imported by the commands: this module is imported by all of `python -m lada`.


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_run_options: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Make the commands known.

    Args:
        add_run_options: adds the options that name a run.
    """
    matrix = commands.add_parser("matrix", help="run what is missing of a matrix")
    matrix.set_defaults(command=_matrix)
    _add_matrix(matrix)
    matrix.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    matrix.add_argument("--list", action="store_true", help="its runs and which are finished; runs nothing")
    matrix.add_argument("--json", action="store_true", help="the list as JSON, with what makes each run")
    matrix.add_argument(
        "--plans", action="store_true", help="what is to do as JSON, with configurations and plans"
    )
    matrix.add_argument("--amend", action="store_true", help="go on although code or packages changed")
    collect = commands.add_parser("collect", help="a matrix's finished runs as CSV")
    collect.set_defaults(command=_collect)
    _add_matrix(collect)
    _add_results(collect)
    sweep = commands.add_parser("sweep", help="one method over all combinations of some options' values")
    sweep.set_defaults(command=_sweep)
    add_run_options(sweep)
    sweep.add_argument("--grid", type=shlex.split, required=True, help="a.b=1,2 c.d=x,y")
    sweep.add_argument("--seeds", type=_numbers, help="0,1,2; default: the one seed")
    sweep.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    _add_results(sweep)


def _matrix(options: argparse.Namespace) -> int:
    from lada.matrix.definition import read_matrices

    found = read_matrices(options.name, tier=options.tier, size=options.size)
    runs = Path(options.runs)
    if options.list:
        return _list(list(found.values()), runs)
    from lada.matrix.local import listing, plans, run_matrix

    if options.plans:
        print(json.dumps(_once(plans(matrix, runs) for matrix in found.values())))
        return 0
    if options.json:
        listed = [{"matrix": name, **one} for name, matrix in found.items() for one in listing(matrix, runs)]
        print(json.dumps(listed))
        return 0
    failed = 0
    for name, matrix in found.items():
        if len(found) > 1:
            print(f"{name}: ", end="", flush=True)
        failed += _failures(run_matrix(matrix, runs, jobs=options.jobs, report=_say, amend=options.amend))
    return 1 if failed else 0


def _list(found: Sequence[Matrix], runs: Path) -> int:
    from lada.matrix.cells import expand

    if importlib.util.find_spec("torch") is None:
        for cell in [cell for matrix in found for cell in expand(matrix)]:
            print(cell)
        print("Without torch methods cannot say which runs these are.", file=sys.stderr)
        return 0
    from lada.matrix.local import find_runs

    for run in [run for matrix in found for run in find_runs(matrix, runs)]:
        print(f"{'finished' if run.finished else 'to do':8s}  {run.folder.name}  {run.cell}")
    return 0


def _once(listed: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What several matrices list, without runs that a matrix before had."""
    found: list[dict[str, Any]] = []
    for one in listed:
        before = {run["run_id"] for run in found}
        found += [run for run in one if run["run_id"] not in before]
    return found


def _failures(failed: Sequence[Run]) -> int:
    for run in failed:
        print(f"failed: {run.cell}: see {run.folder}.log", file=sys.stderr)
    return len(failed)


def _say(line: str) -> None:
    print(line, flush=True)


def _sweep(options: argparse.Namespace) -> int:
    from lada.matrix.collect import collect, collect_into
    from lada.matrix.local import find_runs, run_matrix
    from lada.matrix.sweep import sweep, write_sweep
    from lada.report.study import grid_table

    place = {key: getattr(options, key) for key in ("tier", "size", "scenario", "dataset")}
    data = [] if options.data is None else [f"dataset.file={Path(options.data).resolve()}"]
    matrix = sweep(
        place={**place, "shots": options.shots or 0},
        method=options.method,
        settings=[*options.set, *data],
        grid=options.grid,
        seeds=options.seeds or [options.seed or 0],
    )
    runs = Path(options.runs)
    path = write_sweep(matrix, runs / "sweeps")
    print(f"This sweep as a matrix: {path}", flush=True)
    failed = _failures(run_matrix(matrix, runs, jobs=options.jobs, report=_say))
    out = _results_folder(options, matrix.tier)
    print(collect_into(out, path.stem, matrix, runs, remark=lambda line: print(line, file=sys.stderr)))
    table = grid_table(matrix, collect(matrix, find_runs(matrix, runs)))
    print(f"Clients' mean accuracy in per cent:\n\n{table}")
    return 1 if failed else 0


def _collect(options: argparse.Namespace) -> int:
    from lada.matrix.collect import collect_into
    from lada.matrix.definition import read_matrices

    for name, matrix in read_matrices(options.name, tier=options.tier, size=options.size).items():
        out, runs = _results_folder(options, matrix.tier), Path(options.runs)
        print(collect_into(out, name, matrix, runs, remark=lambda line: print(line, file=sys.stderr)))
    return 0


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", default="results", help="folder of all results, one folder a tier")
    parser.add_argument("--out", help="folder of the files, in place of <results>/<tier>")


def _results_folder(options: argparse.Namespace, tier: str) -> Path:
    return Path(options.results) / tier if options.out is None else Path(options.out)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name in configs/matrices, or a YAML file")
    parser.add_argument("--tier", help="whose arms, where the matrix lists names of arms; default: lab")
    parser.add_argument("--size", help="in place of the matrix's own")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
