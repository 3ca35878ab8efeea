"""`make status`: where a run stands, for a person in 80 columns or as one JSON object.

Exit code 0 whenever that could be told, whatever the state; 2 where there is no such run.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from jobs.select import add_run_options, find_run
from jobs.snapshot import Snapshot, look
from jobs.stage_view import StageView
from jobs.status_text import render


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `status`."""
    parser = commands.add_parser("status", help="where a run stands")
    add_run_options(parser)
    parser.set_defaults(command=show_status)


def show_status(options: argparse.Namespace) -> int:
    """Print a run's status once."""
    shot = look(find_run(options.run, options.runs))
    if options.json:
        sys.stdout.write(json.dumps(as_json(shot), ensure_ascii=False, allow_nan=False) + "\n")
    else:
        console = Console(highlight=False)
        console.print(render(shot, console.width))
    return 0


def as_json(shot: Snapshot) -> dict[str, Any]:
    """The status as JSON values; every key is always there."""
    driver = shot.driver
    return {
        "run_id": shot.run_id,
        "run_dir": str(shot.run.root),
        "state": shot.state,
        "slurm": shot.slurm,
        "time": round(shot.time, 3),
        "rounds": {"done": shot.rounds_done, "total": shot.rounds},
        "stages": [_stage_json(view) for view in shot.stages],
        "driver": {
            key: getattr(driver, key)
            for key in ("state", "text", "job", "host", "pid", "paused", "stopped", "finished")
        },
        "jobs": [
            {"id": job.id, "name": job.name, "state": job.state, "reason": job.reason, "nodes": job.nodes}
            for job in shot.jobs
        ],
        "last_event": shot.last_event,
        "last_error": shot.last_error,
        "left_seconds": None if shot.left_seconds is None else round(shot.left_seconds, 1),
        "free_bytes": shot.free_bytes,
        "hint": shot.hint,
    }


def _stage_json(view: StageView) -> dict[str, Any]:
    progress = view.progress
    return {
        "stage": str(view.stage),
        "round": view.stage.round,
        "step": view.stage.step,
        "party": view.stage.party,
        "state": view.state,
        "text": view.text,
        "attempts": view.attempts,
        "job": view.job,
        "node": view.node or None,
        "reason": view.reason or None,
        "stuck": view.stuck,
        "phase": None if progress is None else progress.phase,
        "done": None if progress is None else progress.done,
        "total": None if progress is None else progress.total,
        "loss": None if progress is None else progress.loss,
        "accuracy": view.accuracy if progress is None else progress.accuracy,  # per cent
        "left_seconds": None if progress is None else progress.left,
        "seconds": view.seconds,
        "cause": view.cause or None,
        "exit_code": view.exit_code,
        "detail": view.detail or None,
        "log": None if view.log is None else str(view.log),
    }
