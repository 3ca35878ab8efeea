"""`python -m lada.report tables|figures|report|explain`: build products from collected results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lada.errors import exit_code
from lada.layers import CONFIGS
from lada.report.explain import explain
from lada.report.export import write_tables
from lada.report.results import ROOT


def _tables(options: argparse.Namespace) -> int:
    built, paths = write_tables(options.tier, options.results)
    print(f"{len(built.tables)} tables, {len(paths)} files in {options.results / options.tier / 'tables'}")
    for name, why in built.missing.items():
        print(f"{name} is missing: {why}")
    return 0


def _figures(options: argparse.Namespace) -> int:
    from lada.report.figures import draw_all

    for path in draw_all(options.tier, options.results):
        print(path)
    return 0


def _report(options: argparse.Namespace) -> int:
    from lada.report.html import write_report

    print(write_report(options.tier, options.results))
    return 0


def _explain(options: argparse.Namespace) -> int:
    print(explain(options.cell, options.tier, results=options.results, runs=options.runs))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m lada.report", description=__doc__)
    tiers = sorted(path.stem for path in (CONFIGS / "tiers").glob("*.yaml"))
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for name, function, what in (
        ("tables", _tables, "Tables I to VI: Markdown, LaTeX, CSV"),
        ("figures", _figures, "figures: PDF, PNG"),
        ("report", _report, "one page with all of it"),
        ("explain", _explain, "where a number is from"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(function=function)
        command.add_argument("--tier", default="lab", choices=tiers)
        command.add_argument("--results", type=Path, default=ROOT / "results")
        if name == "explain":
            command.add_argument("--runs", type=Path, default=ROOT / "runs")
            command.add_argument("cell", help="e.g. 'table2/scenario 1/zero-shot/client-1/lada'")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: int(options.function(options)))


if __name__ == "__main__":
    sys.exit(main())
