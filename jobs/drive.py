"""`python -m jobs.drive …`: the driver with stages as jobs; takes the options of `python -m lada run`.

The run's folder is made by `python -m lada init` in a process of its own, since this side has no torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.launch import Local
from lada.driver import Driver
from lada.errors import exit_code
from lada.lease import lease
from lada.rundir import RunDir


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or resume a run and drive it to its end; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.drive", description=__doc__)
    parser.add_argument("--launcher", choices=("local",), default="local")
    parser.add_argument("--width", type=int, help="stages that run at once")
    parser.add_argument(
        "--no-reuse", action="store_true", help="compute local training anew, keep it for none"
    )
    options, rest = parser.parse_known_args(arguments)
    made = subprocess.run(
        [sys.executable, "-m", "lada", "init", *rest], stdout=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        return made.returncode
    run = RunDir(Path(made.stdout.strip().splitlines()[-1]))
    print(f"Run folder: {run.root}", flush=True)
    return exit_code(lambda: _drive_and_show(run, options.width, reuse=not options.no_reuse))


def _drive_and_show(run: RunDir, width: int | None, *, reuse: bool) -> int:
    with lease(run.lease):
        worked = _drive(run, width, reuse=reuse)
    shown = subprocess.run([sys.executable, "-m", "lada", "show", str(run.root)], check=False)
    if not worked:
        print("Nothing is left to do: every stage of this run is committed.")
    return shown.returncode


def _drive(run: RunDir, width: int | None, *, reuse: bool) -> bool:
    launcher = Local(run, width=width)
    try:
        return Driver(run, launcher, report=lambda line: print(line, flush=True), reuse=reuse).drive()
    finally:
        launcher.stop()


if __name__ == "__main__":
    sys.exit(main())
