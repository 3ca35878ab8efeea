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
Log = Callable[[str], None]


class StageReporter:
    """Shows the phases of one stage.

    Args:
        title: e.g. ``client-1 r02-learn``.
        log: takes plain lines.
        live: a running rich Progress, or None where there is no terminal.
    """

    def __init__(self, title: str, log: Log, live: Progress | None = None) -> None:
        self._title, self._log, self._live = title, log, live

    def phase(self, name: str, total: int) -> Callable[[int, str], None]:
        """Begin a phase; see lada.party.Reporter."""
        label = f"{self._title}: {name}"
        begun = last = time.monotonic()
        before: int | None = None
        task = None if self._live is None else self._live.add_task(label, total=total, note="")

        def tick(done: int, note: str) -> None:
            nonlocal before, last
            if self._live is not None and task is not None:
                self._live.update(task, completed=done, note=note)
                if done >= total:
                    self._live.remove_task(task)
            now = time.monotonic()
            if before is None:  # a phase that is resumed had most of this done when it began
                before = max(0, done - 1)
            if done >= total or now - last > SECONDS_BETWEEN_LINES:
                last = now
                left = (now - begun) * (total - done) / max(1, done - before)
                self._log(f"{label} {done}/{total} {note} elapsed {now - begun:.1f} s left {left:.1f} s")

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


def file_log(path: Path) -> Log:
    """Appends lines to a file, each with its time; the file is open only while one is written."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            stream_log(file)(line)

    return log


def stream_log(stream: IO[str]) -> Log:
    """Writes lines to a stream, each with its time and at once: somebody may be watching."""

    def log(line: str) -> None:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        stream.flush()

    return log
