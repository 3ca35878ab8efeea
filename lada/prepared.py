"""A stage's side of `lada.reuse`: take what an earlier run computed, or compute it and say what it was."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from lada.errors import DataError
from lada.manifest import FileEntry, Outbox, Payload
from lada.party import Party
from lada.provenance import KERNEL_NAMES
from lada.records import dump_jsonl
from lada.reuse import PREPARED, RECORD, TAKEN, Prepared, batches, read_file, read_prepared
from lada.rundir import sha256

DECIDING = (*KERNEL_NAMES, "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE")
"""Environment variables that choose kernels or divide the work, and so change last bits."""
CPU_FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags", "Features")


def prepared(party: Party, compute: Callable[[Party], Outbox]) -> Outbox:
    """What a first stage computes, from an earlier run with the same inputs where there is one.

    Args:
        compute: gives the same outbox, private files alone, from the stage's own work.
    """
    outbox = _taken(party)
    if outbox is None:
        outbox = compute(party)
        assert not outbox.public, "what is published belongs to a method"
    files = tuple(_entry(name, payload) for name, payload in sorted(outbox.private.items()))
    record = Prepared(files=files, machine=machine(party), batches=batches(party.config))
    outbox.private[PREPARED] = Payload("state", 1, dump_jsonl([record]).encode())
    return outbox


def machine(party: Party) -> dict[str, str]:
    """What of this machine and of the model's folder can change the result, and the host does not know."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    configs = sorted(party.model_folder.glob("*.json"))
    return {
        "cpu": sha256(_cpu().encode()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "torch": f"{torch.__version__} {torch.version.cuda}",
        "threads": str(torch.get_num_threads()),
        "model": sha256("".join(f"{one.name} {sha256(one.read_bytes())}\n" for one in configs).encode()),
        **{name: os.environ[name] for name in DECIDING if name in os.environ},
        **({"ranks": str(party.ranks)} if party.ranks.size > 1 else {}),
    }


def _taken(party: Party) -> Outbox | None:
    folder = party.run.reuse(party.name)
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read_prepared(folder)
        _check_machine(record.machine, machine(party))
        outbox = Outbox()
        for entry in record.files:
            outbox.private[entry.path] = Payload(entry.kind, entry.items, read_file(folder, entry))
    except DataError as error:
        party.reporter.phase("an earlier run's work is ignored", 1)(1, str(error))
        return None
    party.inbox.read[TAKEN] = sha256(dump_jsonl([record]).encode())
    party.reporter.phase("taken from an earlier run with the same inputs", 1)(1, "")
    return outbox


def _check_machine(there: dict[str, str], here: dict[str, str]) -> None:
    differing = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if differing:
        raise DataError(f"it was computed on another machine: {', '.join(differing)}")


def _entry(name: str, payload: Payload) -> FileEntry:
    size, digest = len(payload.data), sha256(payload.data)
    return FileEntry(path=name, bytes=size, sha256=digest, kind=payload.kind, items=payload.items)


def _cpu() -> str:
    """What the kernel says of the first processor, where it says anything."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor()
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].split("\n")
    return "\n".join(line for line in first if line.partition(":")[0].strip() in CPU_FACTS)
