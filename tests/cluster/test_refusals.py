"""What a party may not leave behind: refused with a typed error, quarantined, the run otherwise unharmed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from lada.rundir import RunDir, Stage, sha256
from tests.cluster.harness import Run, Suite

Tampering = Callable[[RunDir], Path]
PREPARE, RESPOND, LEARN = (
    [Stage(number, step, party) for party in ("server", "client-1")]
    for number, step in ((0, "prepare"), (1, "respond"), (1, "learn"))
)
SECOND = Stage(2, "learn", "server")
"""A second adapter of the same party: its tensors must be those of the first."""
TWO_ROUNDS = ("--scenario", "one-client", "--size", "tiny")


def flip(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


def forge(path: Path, content: bytes) -> Path:
    """Replace a file and make the manifests agree: a party that lies, not a disk that fails."""
    path.write_bytes(content)
    root = path.parent
    while True:
        manifest = root / "manifest.json"
        if manifest.is_file():
            found = json.loads(manifest.read_text())
            for entry in found["files"]:
                target = root / entry["path"]
                if target.is_file():
                    entry["bytes"], entry["sha256"] = target.stat().st_size, sha256(target.read_bytes())
            manifest.write_text(json.dumps(found))
        if (root / "state").is_dir() or root.name.startswith("r0"):
            return path
        root = root.parent


def public(run: RunDir, stage: Stage, name: str) -> Path:
    (path,) = (run.commit(stage) / "public").glob(f"*/{name}")
    return path


def swap_parties(run: RunDir) -> Path:
    """The server's commit in the client's place."""
    mine, other = run.commit(RESPOND[1]), run.commit(RESPOND[0])
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    return mine


def replay(run: RunDir) -> Path:
    """An earlier stage's commit in a later one's place."""
    mine = run.commit(LEARN[1])
    shutil.rmtree(mine)
    shutil.copytree(run.commit(PREPARE[1]), mine)
    return mine


def symlink(run: RunDir) -> Path:
    path = public(run, RESPOND[0], "responses.jsonl")
    moved = run.party("server") / "elsewhere.jsonl"
    path.rename(moved)
    path.symlink_to(moved)
    return path


def fifo(run: RunDir) -> Path:
    path = public(run, RESPOND[1], "responses.jsonl")
    path.unlink()
    os.mkfifo(path)
    return path


def not_a_number(run: RunDir) -> Path:
    path = public(run, LEARN[1], "adapter.safetensors")
    tensors = load(path.read_bytes())
    name = sorted(tensors)[0]
    tensors[name] = np.full_like(tensors[name], np.nan)
    return forge(path, save(tensors))


def wrong_shape(run: RunDir) -> Path:
    path = public(run, SECOND, "adapter.safetensors")
    tensors = load(path.read_bytes())
    name = sorted(tensors)[0]
    tensors[name] = np.zeros((3, 5), dtype=np.float32)
    return forge(path, save(tensors))


class Evil:
    """Would run a command in whoever unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def a_pickle(run: RunDir) -> Path:
    path = public(run, LEARN[1], "adapter.safetensors")
    return forge(path, pickle.dumps(Evil(f"touch {run.root}/unpickled")))


def huge_header(run: RunDir) -> Path:
    return forge(public(run, LEARN[0], "adapter.safetensors"), struct.pack("<Q", 1 << 60) + b"{}")


def long_line(run: RunDir) -> Path:
    path = public(run, RESPOND[1], "responses.jsonl")
    record = json.loads(path.read_text().splitlines()[0])
    return forge(path, (json.dumps({**record, "text": "x" * (8 << 20)}) + "\n").encode())


def extra_file(run: RunDir) -> Path:
    path = public(run, PREPARE[1], "ids.jsonl").with_name("more.jsonl")
    path.write_text("{}\n")
    return path


# One tampering per stage and pass, so that each is seen by itself.
PASSES: list[dict[Stage, Tampering]] = [
    {
        PREPARE[0]: lambda run: flip(public(run, PREPARE[0], "ids.jsonl")),
        PREPARE[1]: extra_file,
        RESPOND[0]: symlink,
        RESPOND[1]: fifo,
        SECOND: wrong_shape,
        LEARN[1]: not_a_number,
    },
    {
        PREPARE[1]: lambda run: truncate(public(run, PREPARE[1], "ids.jsonl")),
        RESPOND[1]: swap_parties,
        LEARN[0]: huge_header,
        LEARN[1]: replay,
    },
    {RESPOND[1]: long_line, LEARN[1]: a_pickle},
]


@pytest.mark.ci
def test_tampered_commits_are_quarantined_and_made_again(suite: Suite) -> None:
    run = suite.submit("tampered", *TWO_ROUNDS).wait()
    expected = run.folder.metrics_csv.read_bytes()
    for number, tamperings in enumerate(PASSES, start=1):
        before = len(run.events("rejected"))
        for tamper in tamperings.values():
            tamper(run.folder)
        # As its owner would have left it.
        suite_owner = run.folder.root.stat()
        for path in run.folder.root.rglob("*"):
            os.chown(path, suite_owner.st_uid, suite_owner.st_gid, follow_symlinks=False)
        heal(run)
        rejected = {event["stage"]: event["detail"] for event in run.events("rejected")[before:]}
        assert set(map(str, tamperings)) <= set(rejected), f"pass {number}: {rejected}"
        for stage in tamperings:
            assert f"{stage}" in rejected[str(stage)] or stage.party in rejected[str(stage)]
            assert "check '" in rejected[str(stage)]
        assert run.folder.metrics_csv.read_bytes() == expected
    quarantined = [*run.folder.rejected("client-1").iterdir(), *run.folder.rejected("server").iterdir()]
    assert all((place / "reason.txt").is_file() for place in quarantined)
    assert len(quarantined) >= sum(map(len, PASSES))
    assert not (run.folder.root / "unpickled").exists()


def heal(run: Run) -> None:
    """`make drive`: the driver looks at every commit before it goes on, also of a run that was done."""
    done = run.suite.jobs("drive", "--run", str(run.folder.root), check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
