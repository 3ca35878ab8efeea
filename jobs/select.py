"""Which run a command means: the named one, or the newest."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lada.errors import ConfigError
from lada.rundir import RunDir

SET_ASIDE = re.compile(r"\.old-[0-9]+\Z")
"""End of the name of a run that FRESH=1 moved away."""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that name an existing run; the same for every command that looks at one."""
    parser.add_argument("--run", help="the run's folder or id; default: the newest in --runs")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")


def find_run(run: str | None, runs: str) -> RunDir:
    """The folder of a run.

    Args:
        run: a run's folder, or its name inside ``runs``; None: the one with the newest run.yaml, those that
            were set aside left out.
        runs: the folder of all runs.

    Raises:
        ConfigError: no such run; names what exists.
    """
    if run is not None:
        for folder in (Path(run), Path(runs) / run):
            if (folder / "run.yaml").is_file():
                return RunDir(folder.resolve())
        raise ConfigError(f"no run '{run}': no run.yaml in it. {_existing(runs)}")
    found = [path for path in Path(runs).glob("*/run.yaml") if not SET_ASIDE.search(path.parent.name)]
    if not found:
        raise ConfigError(f"there is no run in {runs}/ yet; make submit or make run begins one")
    return RunDir(max(found, key=lambda path: (path.stat().st_mtime, path)).parent.resolve())


def _existing(runs: str) -> str:
    names = sorted(path.parent.name for path in Path(runs).glob("*/run.yaml"))
    if not names:
        return f"{runs}/ holds no run"
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"In {runs}/: {listed}"
