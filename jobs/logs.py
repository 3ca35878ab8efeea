"""`make logs PARTY=client-1 ROUND=2 [STEP=learn] [FOLLOW=1]`: what an attempt wrote, how every attempt ended.

PARTY=driver shows the driver's own log. Control characters are not passed on: a party wrote these files.
"""

from __future__ import annotations

import argparse
import codecs
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jobs.history import Attempt, History, read_history
from jobs.log_files import attempt_logs
from jobs.select import find_run
from jobs.snapshot import look
from jobs.words import cause_words, duration, printable
from lada.errors import ConfigError
from lada.ledger import Ledger
from lada.plan import read_plan
from lada.rundir import RunDir, Stage

DRIVER = "driver"
SECONDS_BETWEEN_LOOKS = 0.5
QUIET_LOOKS = 10
"""Looks without news after which it is asked whether anybody is still at work."""
BLOCK = 64 * 1024


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `logs`."""
    parser = commands.add_parser("logs", help="what an attempt wrote")
    parser.add_argument("--run", help="the run's folder or id; default: the newest in --runs")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--party", help="server, client-1, … or driver")
    parser.add_argument("--round", type=int, help="default: the newest that has a log")
    parser.add_argument("--step", help="e.g. learn; default: every step of the round")
    parser.add_argument("--follow", action="store_true", help="go on with what is written from now on")
    parser.set_defaults(command=show_logs)


def show_logs(options: argparse.Namespace) -> int:
    """Print logs; 2 where there are none that fit."""
    run = find_run(options.run, options.runs)
    console = Console(highlight=False)
    if options.party == DRIVER:
        newest = _driver_log(run)
    else:
        newest = _show_party(run, options.party, options.round, options.step, console)
    last = newest()
    if options.follow:
        for piece in follow(newest, lambda: _moves(run)):
            sys.stdout.write(piece)
            sys.stdout.flush()
    elif last is None:
        console.print("nothing written yet")
    else:
        _print_file(last, console)
    return 0


def _driver_log(run: RunDir) -> Callable[[], Path | None]:
    def newest() -> Path | None:
        logs = sorted((run.root / "logs" / DRIVER).glob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1] if logs else None

    if newest() is None:
        raise ConfigError(f"{run.root.name}: no driver has written a log (make run shows it on the terminal)")
    return newest


def _show_party(
    run: RunDir, party: str | None, number: int | None, step: str | None, console: Console
) -> Callable[[], Path | None]:
    """Print all but the newest log; returns how to find that one, which may change while it is followed."""
    history = read_history(Ledger(run.ledger_jsonl).read())
    stages = choose(run, history, party=party, number=number, step=step)
    last = stages[-1]
    for stage in stages:
        attempts = history[str(stage)]
        for attempt in attempts:
            console.print(Text(printable(_headline(run, stage, attempt)), style="bold"), soft_wrap=True)
        logs = attempt_logs(run, stage, attempts[-1].name)
        for log in logs[:-1] if stage == last else logs:
            _print_file(log.path, console)

    def newest() -> Path | None:
        now = read_history(Ledger(run.ledger_jsonl).read())[str(last)][-1]
        logs = attempt_logs(run, last, now.name)
        return logs[-1].path if logs else None

    return newest


def choose(
    run: RunDir,
    history: History,
    *,
    party: str | None,
    number: int | None,
    step: str | None,
) -> list[Stage]:
    """The stages with an attempt that PARTY, ROUND and STEP name; without ROUND those of the newest round.

    Raises:
        ConfigError: nothing fits; names what there is.
    """
    plan = read_plan(run)
    if party not in plan.parties:
        legal = ", ".join([*plan.parties, DRIVER])
        raise ConfigError(f"name a party: PARTY=<one of {legal}>" + (f", not '{party}'" if party else ""))
    begun = [
        stage
        for group in plan.groups()
        for stage in group
        if stage.party == party and str(stage) in history and step in (None, stage.step)
    ]
    wanted = max((stage.round for stage in begun), default=None) if number is None else number
    found = [stage for stage in begun if stage.round == wanted]
    if not found:
        names = ", ".join(stage.name for stage in begun) or "nothing"
        raise ConfigError(f"no such stage of {party} has begun; begun are: {names}")
    return found


def _headline(run: RunDir, stage: Stage, attempt: Attempt) -> str:
    how: str = attempt.outcome
    if attempt.outcome == "open":
        how = "committed" if run.is_committed(stage) else "no end seen yet"
    if attempt.outcome in ("failed", "rejected"):
        code = f", exit code {attempt.exit_code}" if attempt.exit_code else ""
        how = f"{attempt.outcome}: {cause_words(attempt.cause)}{code}"
    where = "".join(
        [f", job {attempt.job}" if attempt.job else "", f" on {attempt.node}" if attempt.node else ""]
    )
    took = f", {duration(attempt.seconds)}" if attempt.seconds is not None else ""
    changed = f", with {_pairs(attempt.change)}" if attempt.change else ""
    return f"== {stage} attempt {attempt.name}{where}{took}{changed}: {how}"


def _pairs(change: object) -> str:
    assert isinstance(change, dict)
    return ", ".join(f"{key} {value}" for key, value in change.items())


def _print_file(path: Path, console: Console) -> None:
    console.print(Text(f"-- {path}", style="dim"), soft_wrap=True)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            sys.stdout.write(printable(line))


def _moves(run: RunDir) -> bool:
    """Whether anything may still be written."""
    shot = look(run)
    return shot.state in ("running", "pending") or bool(shot.jobs) or shot.driver.state != "none"


def follow(
    newest: Callable[[], Path | None],
    moves: Callable[[], bool],
    *,
    pause: Callable[[], None] = lambda: time.sleep(SECONDS_BETWEEN_LOOKS),
) -> Iterator[str]:
    """The newest log and what is added to it, then the next attempt's; ends when nothing more can come.

    Args:
        newest: the file to read; another one than before is read from its beginning.
        moves: whether somebody is still at work; asked now and then.
    """
    path: Path | None = None
    place, quiet, alive = 0, 0, True
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    while True:
        content = b"" if path is None else _read(path, place)
        if content:
            place += len(content)
            yield printable(decode(content))
            continue
        other = newest()
        if other != path:
            path, place = other, 0
            yield f"-- {path}\n"
            continue
        if not alive:
            return
        quiet += 1
        alive = quiet % QUIET_LOOKS != 0 or moves()
        pause()


def _read(path: Path, place: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(place)
            return file.read(BLOCK)
    except OSError:
        return b""  # moved away by FRESH=1, or a file server that is away for a moment
