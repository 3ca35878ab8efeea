"""A run's status for a person: a grid in 80 columns, what is under way, what to do; words carry it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.history import Event
from jobs.snapshot import Snapshot
from jobs.stage_view import StageView
from jobs.words import cause_words, duration, printable, size
from lada.rundir import Stage

SHOWN_ROUNDS = 4
"""Rounds without news that are shown one by one at either end of the grid; more are summed up in one row."""
COLOURS = {
    "done": "green",
    "committed": "green",
    "running": "cyan",
    "queued": "yellow",
    "pending": "yellow",
    "paused": "yellow",
    "unknown": "magenta",
    "failed": "bold red",
    "waiting": "dim",
}


def render(shot: Snapshot, width: int) -> RenderableType:
    """The status as rich shows it."""
    parts: list[RenderableType] = [_title(shot), Text(shot.label, style="dim"), *_grid(shot, width)]
    for lines in (_now(shot), _foot(shot)):
        if lines.row_count:
            parts += [Text(), lines]
    return Group(*parts)


def _title(shot: Snapshot) -> Text:
    reached = min(shot.rounds, shot.rounds_done + 1)
    count = "1 round" if shot.rounds == 1 else f"{shot.rounds} rounds"
    where = f"all of {count}" if shot.state == "done" else f"round {reached} of {shot.rounds}"
    if not any(view.state == "committed" for view in shot.stages):
        where = count
    text = Text(f"{shot.run_id}: ", style="bold")
    text.append(shot.state, style=COLOURS[shot.state])
    return text.append(f", {where}", style="default")


def _grid(shot: Snapshot, width: int) -> list[RenderableType]:
    """Rounds and steps down, parties across; several blocks of parties where the width asks for it."""
    cells = {view.stage: _cell(view) for view in shot.stages}
    rows = _rows(shot)
    parties = list(shot.plan.parties)
    each = max(len(party) for party in parties)
    each = max(each, *(len(cell.plain) for cell in cells.values())) + 2
    count = max(1, (width - 14) // each)
    blocks: list[RenderableType] = []
    for start in range(0, len(parties), count):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for party in parties[start : start + count]:
            table.add_column(party, no_wrap=True, header_style="bold")
        for label, group in rows:
            if isinstance(group, str):
                table.add_row(label, Text(group, style=COLOURS["done" if group == "done" else "waiting"]))
                continue
            by_party = {stage.party: cells[stage] for stage in group}
            table.add_row(label, *(by_party.get(party, Text()) for party in parties[start : start + count]))
        blocks += [Text(), table]
    return blocks


def _rows(shot: Snapshot) -> list[tuple[str, Sequence[Stage] | str]]:
    """(label, stages of a group), or (label, words) for rounds that are summed up."""
    groups: dict[int, list[Sequence[Stage]]] = {}
    for group in shot.plan.groups():
        groups.setdefault(group[0].round, []).append(group)
    states = {view.stage: view for view in shot.stages}
    done = [number for number in groups if _all(groups[number], states, "committed")]
    idle = [number for number in groups if _all(groups[number], states, "waiting")]
    rows: list[tuple[str, Sequence[Stage] | str]] = []
    hidden_done = done[1:-1] if len(done) > SHOWN_ROUNDS else []
    hidden_idle = idle[2:] if len(idle) > SHOWN_ROUNDS else []
    for number, found in groups.items():
        for hidden, words in ((hidden_done, "done"), (hidden_idle, "-")):
            if hidden and number == hidden[0]:
                rows.append((f"r{hidden[0]:02d}-r{hidden[-1]:02d}", words))
        if number in hidden_done or number in hidden_idle:
            continue
        for place, stages in enumerate(found):
            rows.append((f"{'   ' if place else f'r{number:02d}'} {stages[0].step}", stages))
    return rows


def _all(groups: Sequence[Sequence[Stage]], states: Mapping[Stage, StageView], state: str) -> bool:
    found = [states[stage] for group in groups for stage in group]
    return all(view.state == state and not view.text for view in found)


def _cell(view: StageView) -> Text:
    words = {"committed": "done", "waiting": "-"}.get(view.state, view.state)
    if view.state == "waiting" and view.text:
        words = "again"
    if view.state == "committed" and view.accuracy is not None:
        words = f"done {view.accuracy:.1f} %"
    if view.attempts > 1:
        words += f" ×{view.attempts}"
    return Text(words, style=COLOURS[view.state])


def _now(shot: Snapshot) -> Table:
    """One line or two for everything that runs, waits in the queue or failed."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for view in shot.stages:
        if view.state in ("running", "queued", "failed", "unknown") or view.text:
            table.add_row(Text(str(view.stage)), Text(printable(describe(view)), style=COLOURS[view.state]))
    return table


def describe(view: StageView, *, progress: bool = True) -> str:
    """A stage's state in one to three lines."""
    where = ", ".join(
        part
        for part in (
            view.job and f"job {view.job}",
            view.state == "running" and view.node and f"on {view.node}",
            progress and view.state == "running" and view.elapsed and f"{view.elapsed} of {view.limit}",
            view.attempts > 1 and f"attempt {view.attempts}",
        )
        if part
    )
    head = view.state + (f" ({where})" if where else "")
    parts = [part for part in (view.text, _progress(view) if progress else "") if part]
    text = f"{head}: {'; '.join(parts)}" if parts else head
    if view.state == "failed" and view.detail:
        text += f"\n{view.detail.strip().splitlines()[-1][:300]}"
    if view.todo:
        text += f"\n-> {view.todo}"
    return text


def _progress(view: StageView) -> str:
    found = view.progress
    if found is None:
        return "no progress in its log yet" if view.state == "running" else ""
    parts = [f"{found.phase} {bar(found.done, found.total)} {found.done}/{found.total}"]
    if found.note:
        parts.append(found.note)
    if found.loss is not None and "loss" not in found.note:
        parts.append(f"loss {found.loss:g}")
    if found.done < found.total:
        parts.append(f"{duration(found.left)} left")
    return ", ".join(parts)


def bar(done: int, total: int, width: int = 10) -> str:
    """A bar of plain characters."""
    full = width * min(done, total) // max(1, total)
    return f"[{'#' * full}{'.' * (width - full)}]"


def _foot(shot: Snapshot) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for label, text, style in _foot_lines(shot):
        table.add_row(label, Text(printable(text), style=style))
    return table


def _foot_lines(shot: Snapshot) -> list[tuple[str, str, str]]:
    lines = [("driver", shot.driver.text, "")] if shot.state != "done" else []
    if shot.last_event is not None:
        lines.append(("last", say_event(shot.last_event), ""))
    if shot.driver.stopped and shot.state == "failed":
        lines.append(("stopped", shot.driver.stopped, COLOURS["failed"]))
    if shot.state != "done":
        lines.append(("left", _left(shot), ""))
    lines.append(("disk", f"{size(shot.free_bytes)} free", ""))
    if shot.hint:
        lines.append(("hint", shot.hint, "bold"))
    if shot.state == "done":
        lines.append(("results", str(shot.run.metrics_csv), ""))
    return lines


def _left(shot: Snapshot) -> str:
    if shot.left_seconds is None:
        return "not known before every step was seen once"
    queue = ", time in the queue left out" if shot.slurm != "unused" else ""
    return f"about {duration(math.ceil(shot.left_seconds))}, as earlier rounds went{queue}"


EVENTS = {
    "started": "was begun",
    "submitted": "was submitted",
    "adopted": "was found at work",
    "driver-submitted": "driver was submitted",
    "driver-began": "driver began",
    "driver-ended": "driver ended",
    "driver-warned": "driver's time limit is near",
    "went-on": "went on",
    "cancelled": "was cancelled",
}
"""Events of the ledger that are not said by their own name."""


def say_event(event: Event) -> str:
    """An event of the ledger as a person reads it."""
    kind, stage = str(event.get("event")), event.get("stage")
    when = time.strftime("%H:%M:%S", time.localtime(float(event.get("time", 0))))
    parts = [when, str(stage or "run"), EVENTS.get(kind, kind)]
    if event.get("job") and kind != "committed":
        parts.append(f"as job {event['job']}")
    if kind == "committed":
        parts.append(f"({duration(float(event.get('seconds', 0)))})")
    elif kind == "failed":
        parts.append(f"({cause_words(str(event.get('cause', '')))})")
    elif kind == "driver-ended" and event.get("finished"):
        parts.append("(all is done)")
    elif event.get("reason"):
        parts.append(f"({str(event['reason']).splitlines()[0][:200]})")
    return " ".join(parts)
