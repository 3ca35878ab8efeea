"""`python -m jobs …`: what a person does on a cluster; the Makefile's targets call it.

Exit codes: 0 done, 1 anything unforeseen, 2-9 as `python -m lada`, 13 Slurm is not there or refused,
14 `doctor` found something broken, 15 `stage`: the hub refuses, or something is not what the lock says,
85 the driver's time limit came and it could not requeue itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from lada.errors import exit_code

COMMANDS = (
    "submit",
    "matrix",
    "driver_job",
    "plan_view",
    "status",
    "watch",
    "logs",
    "cost",
    "gc",
    "doctor",
    "staging",
    "rehearsal",
    "matrix_plan",
)
"""Modules of jobs/ that plug in commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns an exit code."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: options.command(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m jobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"jobs.{name}").add_parser(commands)
    return found


if __name__ == "__main__":
    sys.exit(main())
