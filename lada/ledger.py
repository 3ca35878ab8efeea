"""ledger.jsonl: what the driver did, one JSON object a line. A record for people, never the truth."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from lada.faults import crash_point


class Ledger:
    """Appends events to a file; a line that a killed writer left half is closed, not continued."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one event and sync it to disk.

        Args:
            event: e.g. ``started``, ``committed``, ``failed``.
            **fields: JSON values.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False)
        with self.path.open("ab+") as file:
            if file.tell() and self._ends_half(file.fileno(), file.tell()):
                file.write(b"\n")
            half = len(line) // 2
            file.write(line[:half].encode())
            file.flush()
            crash_point("ledger.half-line")
            file.write(line[half:].encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        crash_point("ledger.line-written")

    def read(self) -> list[dict[str, Any]]:
        """All whole events, oldest first; half lines are left out."""
        if not self.path.is_file():
            return []
        events = []
        # Not splitlines: a detail may quote characters that it takes for line ends.
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def says_finished(self) -> bool:
        """Whether the newest word of any driver is that the run is done, messages and results included."""
        drivers = [event for event in self.read() if str(event.get("event")).startswith("driver-")]
        return bool(drivers) and bool(drivers[-1].get("finished"))

    @staticmethod
    def _ends_half(descriptor: int, size: int) -> bool:
        return os.pread(descriptor, 1, size - 1) != b"\n"
