"""`make watch`: the status, live on a terminal, a line per change elsewhere, until nothing moves any more.

Exit codes: 0 the run is done, 7 it failed, 1 nobody is at work on what is left, 130 interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.select import find_run
from jobs.snapshot import Snapshot, look
from jobs.status_text import describe, render
from jobs.words import printable
from lada.errors import StageError
from lada.rundir import RunDir

SECONDS = {"unused": 1.0, "answers": 5.0, "silent": 15.0}
"""Between two looks, by how Slurm answered: a controller that is busy is asked less often."""
PAUSED_EXIT = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `watch`."""
    parser = commands.add_parser("watch", help="the status, live")
    parser.add_argument("--run", help="the run's folder or id; default: the newest in --runs")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--every", type=float, help="seconds between two looks")
    parser.set_defaults(command=show_live)


def show_live(options: argparse.Namespace) -> int:
    """Show a run until it is over; see the module for exit codes."""
    run = find_run(options.run, options.runs)
    console = Console(highlight=False)
    shots = looks(run, lambda shot: time.sleep(options.every or SECONDS[shot.slurm]))
    last = _live(shots, console) if console.is_terminal else _lines(shots, console)
    return {"done": 0, "failed": StageError.exit_code}.get(last.state, PAUSED_EXIT)


def looks(run: RunDir, pause: Callable[[Snapshot], None]) -> Iterator[Snapshot]:
    """Snapshots until the run is over: done, failed, or left without a driver and without jobs."""
    while True:
        shot = look(run)
        yield shot
        # A job that is being requeued is still listed: the run is not left alone then.
        left_alone = shot.driver.state == "none" and not shot.jobs and shot.slurm != "silent"
        if shot.state == "done" or (shot.state in ("failed", "paused") and left_alone):
            return
        pause(shot)


def _live(shots: Iterator[Snapshot], console: Console) -> Snapshot:
    shot = next(shots)
    with Live(render(shot, console.width), console=console, auto_refresh=False, transient=True) as live:
        for shot in shots:
            live.update(render(shot, console.width), refresh=True)
    console.print(render(shot, console.width))
    return shot


def _lines(shots: Iterator[Snapshot], console: Console) -> Snapshot:
    before: dict[str, str] | None = None
    for shot in shots:
        now = _said(shot)
        if before is None:
            # What was committed before is one number, not a line each.
            done = [str(view.stage) for view in shot.stages if view.state == "committed"]
            before = {stage: now[stage] for stage in done}
            now |= {"stages": f"{len(done)} of {len(shot.stages)} are committed"}
        for subject, text in now.items():
            if before.get(subject) != text:
                when = time.strftime("%H:%M:%S", time.localtime(shot.time))
                console.print(Text(printable(f"{when} {subject}: {text}")), soft_wrap=True)
        before = now
    return shot


def _said(shot: Snapshot) -> dict[str, str]:
    """What is worth a line when it changes: not the progress inside a stage, nor what never began."""
    said = {shot.run_id: shot.state, "driver": shot.driver.text.partition(" for ")[0]}
    for view in shot.stages:
        if view.state != "waiting" or view.text:
            said[str(view.stage)] = describe(view, progress=False).replace("\n", " ")
    if shot.hint:
        said["hint"] = shot.hint
    return said
