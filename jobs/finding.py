"""What a check of `make doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        level: ``fail``: runs cannot work; ``warn``: something may be missed or could not be looked at.
        subject: what was looked at, in a word or two.
        text: what was found.
        mend: what to do about it; empty for ``ok``.
    """

    level: Level
    subject: str
    text: str
    mend: str = ""


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", subject, text)


def warn(subject: str, text: str, mend: str) -> Finding:
    """Runs work, but something is missing, or could not be looked at."""
    return Finding("warn", subject, text, mend)


def fail(subject: str, text: str, mend: str) -> Finding:
    """Runs cannot work."""
    return Finding("fail", subject, text, mend)
