"""The log files of attempts, and what their newest line says of progress.

A party writes these files: what is read from them is cut to size and stripped of control characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobs.words import printable
from lada.rundir import RunDir, Stage

TAIL_BYTES = 16 * 1024
LINE = re.compile(
    r"^(?P<when>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \S+: (?P<phase>.+?) (?P<done>\d+)/(?P<total>\d+) "
    r"(?P<note>.*?) ?elapsed (?P<elapsed>\d+\.\d) s left (?P<left>\d+\.\d) s$"
)
"""A line of lada.progress.StageReporter."""
SUFFIX = re.compile(r"^-(?P<restart>\d+)(?:\.node(?P<node>\d+))?\Z")
"""After the attempt's name where it ran as a job."""
LOSS = re.compile(r"\bloss (-?\d+(?:\.\d+)?|nan|-?inf)\b")
ACCURACY = re.compile(r"\baccuracy (\d+(?:\.\d+)?) %")


@dataclass(frozen=True)
class Progress:
    """What a stage was doing when it last wrote a line.

    Attributes:
        when: local time of the node that wrote it.
        done, total: of the phase.
        left: seconds that the phase still takes.
        loss, accuracy: the newest that the end of the log states; accuracy in per cent.
    """

    when: str
    phase: str
    done: int
    total: int
    note: str
    left: float
    loss: float | None = None
    accuracy: float | None = None


class LogFile(NamedTuple):
    """A log of an attempt: of which restart of its job, by which node of it."""

    restart: int
    node: int
    path: Path


def attempt_logs(run: RunDir, stage: Stage, attempt: str) -> list[LogFile]:
    """Log files of one attempt, oldest first."""
    plain = run.log(stage.party, stage, attempt)
    found = [LogFile(0, 0, plain)] if plain.is_file() else []
    for path in plain.parent.glob(f"{plain.stem}-*.log"):
        suffix = SUFFIX.match(path.stem.removeprefix(plain.stem))
        if suffix is not None:
            found.append(LogFile(int(suffix["restart"]), int(suffix["node"] or 0), path))
    return sorted(found)


def newest_log(run: RunDir, stage: Stage, attempt: str) -> LogFile | None:
    """The log of an attempt's newest restart, first node; None while there is none."""
    logs = [log for log in attempt_logs(run, stage, attempt) if log.node == 0]
    return logs[-1] if logs else None


def tail(path: Path, count: int = TAIL_BYTES) -> list[str]:
    """Whole lines at the end of a file, without control characters; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - count)
            file.seek(start)
            text = file.read(count).decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = printable(text).split("\n")
    return [line for line in (lines[1:] if start else lines) if line.strip()]


def last_progress(path: Path) -> Progress | None:
    """The newest progress line of a log; None where there is none yet."""
    found: Progress | None = None
    loss = accuracy = None
    for line in tail(path):
        match = LINE.match(line)
        if match is None:
            continue
        note = match["note"].strip()
        loss, accuracy = _number(LOSS, note, loss), _number(ACCURACY, note, accuracy)
        found = Progress(
            match["when"], match["phase"], int(match["done"]), int(match["total"]), note, float(match["left"])
        )
    return None if found is None else Progress(**{**vars(found), "loss": loss, "accuracy": accuracy})


def last_line(path: Path) -> str:
    """The last line of a log, e.g. the error that ended it; empty where there is none."""
    lines = tail(path)
    return lines[-1][:400] if lines else ""


def _number(pattern: re.Pattern[str], text: str, before: float | None) -> float | None:
    match = pattern.search(text)
    if match is None:
        return before
    value = float(match[1])
    return value if abs(value) < float("inf") else before
