"""`make gc`: lists what of a run nothing will read again; YES=1 removes it, ONLY="staging logs" a part of it.

Commits, messages, results and the ledger always stay: the driver verifies commits as a whole, their private
state included, whenever it looks at a run. Nothing is removed while a driver or a job of the run may be at
work (exit code 9).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.history import History, read_history
from jobs.select import SET_ASIDE, add_run_options, find_run
from jobs.snapshot import Snapshot, look
from jobs.words import size
from lada.errors import BusyError, ConfigError
from lada.lease import lease
from lada.ledger import Ledger
from lada.plan import Plan
from lada.rundir import RunDir, parse_stage

KINDS = {
    "staging": "what attempts that are over left half done",
    "resume": "resume points of stages that have committed since",
    "rejected": "commits that were refused, with the reasons",
    "logs": "submitit's pickles and scripts (the stages' own logs stay)",
    "temporary": "files that a killed process left half written",
    "old": "earlier runs that FRESH=1 set aside, whole",
}
"""What can go, and what it is."""


PICKLES = (".pkl", ".save_tmp")


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing reads again."""

    kind: str
    path: Path
    bytes: int


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `gc`."""
    parser = commands.add_parser("gc", help="list or remove what of a run nothing will read again")
    add_run_options(parser)
    parser.add_argument("--only", default="", metavar="KINDS", help=f"of: {' '.join(KINDS)}; default: all")
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.set_defaults(command=collect)


def collect(options: argparse.Namespace) -> int:
    """List, and with --yes remove, what can go.

    Raises:
        BusyError: a driver or a job of the run may be at work.
        ConfigError: no such run, or no such kind.
    """
    run = find_run(options.run, options.runs)
    kinds = options.only.split() or list(KINDS)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"no kind '{unknown[0]}'; legal: {', '.join(KINDS)}")
    shot = look(run)
    busy = why_busy(shot)
    if options.yes:
        if busy:
            raise BusyError(f"nothing was removed: {busy}")
        with lease(run.lease, gone=lambda owner: True):  # none is at work, as the queue says too
            wastes = [one for one in find_waste(run, shot.plan) if one.kind in kinds]
            for one in wastes:
                remove(one.path)
    else:
        wastes = [one for one in find_waste(run, shot.plan) if one.kind in kinds]
    _report(run, wastes, removed=options.yes, busy=busy, as_json=options.json)
    return 0


def why_busy(shot: Snapshot) -> str:
    """Why nothing may be removed now; empty where nobody can be at work."""
    if shot.driver.state != "none":
        return f"driver: {shot.driver.text}"
    if shot.slurm == "silent":
        return "Slurm does not answer, so jobs of this run may be at work"
    if shot.jobs:
        return f"job {shot.jobs[0].id} ({shot.jobs[0].name}) is in the queue; `make cancel` ends it"
    return ""


def find_waste(run: RunDir, plan: Plan) -> list[Waste]:
    """Everything that can go while nobody is at work on the run."""
    history = read_history(Ledger(run.ledger_jsonl).read())
    found = []
    for party in plan.parties:
        folder = run.party(party)
        found += [("staging", path) for path in _inside(folder / ".staging")]
        done = {path.parent.name for path in folder.glob("r*/manifest.json")}
        found += [("resume", path) for path in _inside(folder / ".resume") if path.name in done]
        found += [("rejected", path) for path in _inside(run.rejected(party))]
        found += [("logs", path) for path in _submitit_files(run, party, history)]
    found += [("temporary", path) for path in sorted(run.root.glob(".*.tmp"))]
    found += [
        ("old", path)
        for path in sorted(run.root.parent.glob(f"{run.root.name}.old-*"))
        if SET_ASIDE.search(path.name) and not path.is_symlink()
    ]
    return [Waste(kind, path, _bytes(path)) for kind, path in found]


def remove(path: Path) -> None:
    """Remove a file or a folder; a link goes, what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _inside(folder: Path) -> Iterator[Path]:
    """What lies in a folder; a party may have put a link in its place, which is not followed."""
    if folder.is_symlink() or not folder.is_dir():
        return
    yield from sorted(folder.iterdir())


def _submitit_files(run: RunDir, party: str, history: History) -> Iterator[Path]:
    """Pickles of any attempt, since no job lives; scripts and job outputs of committed stages alone."""
    done = {
        attempt.job
        for stage, attempts in history.items()
        for attempt in attempts
        if stage.startswith(f"{party}/") and run.is_committed(parse_stage(stage.partition("/")[2], party))
    }
    for path in _inside(run.root / "logs" / "submitit" / party):
        unread = path.name.endswith(PICKLES) or path.name.startswith("submission_file_")
        if unread or path.name.partition("_")[0] in done:
            yield path


def _bytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(one.lstat().st_size for one in path.rglob("*") if one.is_symlink() or not one.is_dir())


def _report(run: RunDir, wastes: Sequence[Waste], *, removed: bool, busy: str, as_json: bool) -> None:
    sums = {kind: [one for one in wastes if one.kind == kind] for kind in KINDS}
    if as_json:
        content = {
            "run_dir": str(run.root),
            "removed": removed,
            "busy": busy or None,
            "kinds": {
                kind: {"files": [str(one.path) for one in found], "bytes": sum(one.bytes for one in found)}
                for kind, found in sums.items()
            },
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for kind, found in sums.items():
        if found:
            table.add_row(kind, str(len(found)), size(sum(one.bytes for one in found)), KINDS[kind])
    total = size(sum(one.bytes for one in wastes))
    if not wastes:
        console.print(f"{run.root.name}: nothing can go")
        return
    console.print(f"{run.root.name}: {total} {'removed' if removed else 'can go'}", soft_wrap=True)
    console.print(table)
    if busy:
        console.print(f"Not now, though: {busy}", soft_wrap=True)
    elif not removed:
        console.print('YES=1 removes it, ONLY="staging logs" a part of it. Commits and results stay.')
