"""Where things lie in a run folder, and how a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lada.errors import PlanError
from lada.records import Item, Question, read_jsonl

STAGE_NAME = re.compile(r"^r([0-9]{2})-([a-z][a-z0-9_]{0,31})\Z")
PARTY_NAME = re.compile(r"^(server|client-[1-9][0-9]?)\Z")


@dataclass(frozen=True, order=True)
class Stage:
    """One party's part in one step of one round: what is launched, committed and retried."""

    round: int
    step: str
    party: str

    @property
    def name(self) -> str:
        """Name of the stage's folder, e.g. ``r02-learn``."""
        return f"r{self.round:02d}-{self.step}"

    def __str__(self) -> str:
        return f"{self.party}/{self.name}"


def parse_stage(name: str, party: str) -> Stage:
    """The stage that a folder name stands for.

    Raises:
        PlanError: when the name is not of the form ``r02-learn``.
    """
    match = STAGE_NAME.match(name)
    if match is None:
        raise PlanError(f"'{name}' is no stage name; legal: r<two digits>-<step>, e.g. r02-learn")
    return Stage(int(match[1]), match[2], party)


@dataclass(frozen=True)
class RunDir:
    """Paths of a run folder, but for the exchange, whose paths only exchange.py builds."""

    root: Path

    @property
    def run_yaml(self) -> Path:
        """The resolved configuration."""
        return self.root / "run.yaml"

    @property
    def plan_json(self) -> Path:
        """Steps, roles and barriers."""
        return self.root / "plan.json"

    @property
    def provenance_json(self) -> Path:
        """Code, packages, host and command line that the run began with."""
        return self.root / "provenance.json"

    @property
    def ledger_jsonl(self) -> Path:
        """What the driver did."""
        return self.root / "ledger.jsonl"

    @property
    def lease(self) -> Path:
        """Who drives the run at present."""
        return self.root / "driver.lease"

    @property
    def metrics_csv(self) -> Path:
        """Results in long form."""
        return self.root / "metrics.csv"

    @property
    def timings_csv(self) -> Path:
        """Seconds per stage: not in metrics.csv, since they differ from run to run."""
        return self.root / "timings.csv"

    @property
    def public(self) -> Path:
        """The shared questions, without answers."""
        return self.root / "data" / "public.jsonl"

    @property
    def demo(self) -> Path:
        """The one-shot example."""
        return self.root / "data" / "demo.jsonl"

    @property
    def sealed(self) -> Path:
        """The public questions' answers: host side only, mounted into no container."""
        return self.root / "sealed" / "public.jsonl"

    def party(self, name: str) -> Path:
        """A party's private folder."""
        return self.root / "parties" / name

    def data(self, party: str, part: str) -> Path:
        """A party's ``train`` or ``test`` items."""
        return self.party(party) / "data" / f"{part}.jsonl"

    def commit(self, stage: Stage) -> Path:
        """Folder of a committed stage."""
        return self.party(stage.party) / stage.name

    def staging(self, stage: Stage, attempt: str) -> Path:
        """Folder in which an attempt of a stage writes."""
        return self.party(stage.party) / ".staging" / f"{stage.name}.{attempt}"

    def resume(self, stage: Stage) -> Path:
        """Folder of an unfinished stage's resume points; private like all beside it."""
        return self.party(stage.party) / ".resume" / stage.name

    def reuse(self, party: str) -> Path:
        """Where a party's first stage finds what an earlier run with the same inputs computed."""
        return self.party(party) / ".reuse"

    def rejected(self, party: str) -> Path:
        """Where refused commits of a party go, with the reason."""
        return self.party(party) / ".rejected"

    def log(self, party: str, stage: Stage, attempt: str) -> Path:
        """Log file of one attempt."""
        return self.root / "logs" / party / f"{stage.name}.{attempt}.log"

    def is_committed(self, stage: Stage) -> bool:
        """Whether the stage has a commit (the rename of its folder is the only commit point)."""
        return (self.commit(stage) / "manifest.json").is_file()

    def public_questions(self) -> list[Question]:
        """The shared questions."""
        return read_jsonl(Question, self.public)

    def sealed_items(self) -> list[Item]:
        """The shared questions with their answers; for diagnostics on the host side."""
        return read_jsonl(Item, self.sealed)


def set_aside(root: Path) -> Path:
    """Rename a run's folder to ``<name>.old-1`` or the next free number."""
    number = 1
    while (target := root.with_name(f"{root.name}.old-{number}")).exists():
        number += 1
    root.rename(target)
    return target


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: in containers of their own two attempts have the same one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_synced(temporary, content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
    sync_dir(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write and fsync; the name is not safe from a crash until its folder is synced too."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_dir(path: Path) -> None:
    """Sync a folder, so that renames in it survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some shared file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump_json(content: Any) -> str:
    """JSON as people read it, the same content always the same bytes."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def sha256(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()
