"""Progress for people: a bar with loss or accuracy and time left on a terminal, plain lines in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 5.0


class StageReporter:
    """Shows the phases of one stage.

    Args:
        title: e.g. ``client-1 r02-learn``.
        log: file for plain lines, appended to.
        live: a running rich Progress, or None where there is no terminal.
    """

    def __init__(self, title: str, log: Path, live: Progress | None = None) -> None:
        self._title, self._log, self._live = title, log, live
        log.parent.mkdir(parents=True, exist_ok=True)

    def phase(self, name: str, total: int) -> Callable[[int, str], None]:
        """Begin a phase; see lada.party.Reporter."""
        label = f"{self._title}: {name}"
        begun = last = time.monotonic()
        task = None if self._live is None else self._live.add_task(label, total=total, note="")

        def tick(done: int, note: str) -> None:
            nonlocal last
            if self._live is not None and task is not None:
                self._live.update(task, completed=done, note=note)
                if done >= total:
                    self._live.remove_task(task)
            now = time.monotonic()
            if done >= total or now - last > SECONDS_BETWEEN_LINES:
                last = now
                left = (now - begun) * (total - done) / max(1, done)
                line = f"{label} {done}/{total} {note} elapsed {now - begun:.1f} s left {left:.1f} s"
                with self._log.open("a", encoding="utf-8") as file:
                    _write(file, line)

        return tick


@contextlib.contextmanager
def live_display(console: Console) -> Iterator[Progress | None]:
    """A running progress display on a terminal, None elsewhere."""
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[Callable[[str], None]]:
    """A log file to append plain lines to, each with its time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda line: _write(file, line)


def _write(file: IO[str], line: str) -> None:
    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
