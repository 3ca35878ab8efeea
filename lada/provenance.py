"""What a run was made with: code, packages, weights, host. A run goes on only with what it began with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lada.config import read_run
from lada.errors import ChangedError
from lada.rundir import RunDir, dump_json, write_atomic

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "peft", "pydantic", "safetensors", "scikit-learn", "tokenizers", "torch", "transformers")


def code_hash() -> str:
    """sha256 over the Python files that decide a run's numbers: lada/ without reports and pre-training.

    Choice: how the lab's weights were made does not count, the weights have hashes of their own.
    """
    digest = hashlib.sha256()
    skipped = {ROOT / "lada" / "report", ROOT / "lada" / "lab"}
    for path in sorted((ROOT / "lada").rglob("*.py")):
        if path.parent in skipped and path.name != "__init__.py":
            continue
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def host_facts() -> dict[str, Any]:
    """What only the host knows: inside an image there is no git. A copy of a checkout may state its own."""
    status = os.environ.get("LADA_GIT_STATUS", _git("status", "--porcelain"))
    return {
        "git": os.environ.get("LADA_GIT_SHA") or _git("rev-parse", "HEAD"),
        "git_dirty": bool(status),
        "host": platform.node(),
        "command": sys.argv,
    }


def collect(weights: Mapping[str, str], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that provenance.json states.

    Args:
        weights: model id -> sha256 of its weights.
        facts: of the host, `host_facts` and ``image`` (digest), where this process runs in an image.
    """
    return {
        "code": code_hash(),
        "image": None,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "weights": dict(weights),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **(host_facts() if facts is None else facts),
    }


def check(run: RunDir, now: Mapping[str, Any], *, amend: bool, finished: bool) -> str | None:
    """Compare with what the run began with.

    Returns:
        A remark for a person when a finished run was made with something else; None when all is the same.

    Raises:
        ChangedError: for an unfinished run, unless ``amend``; names what changed and what to do.
    """
    then = json.loads(run.provenance_json.read_text(encoding="utf-8"))
    changed = [
        f"{key}: {_short(then.get(key))} -> {_short(now[key])}"
        for key in ("code", "packages", "weights", "image")
        if then.get(key) != now[key]
    ]
    if not changed:
        return None
    listed = "; ".join(changed)
    if finished:
        return f"this run was made with something else ({listed}); FRESH=1 makes it anew"
    if not amend:
        raise ChangedError(
            f"{run.root.name} began with something else ({listed}). "
            "AMEND=1 goes on all the same, FRESH=1 starts anew"
        )
    history = [*then.pop("amended_from", []), then]
    write_atomic(run.provenance_json, dump_json({**now, "amended_from": history}))
    return f"going on although something changed ({listed})"


def check_host(run: RunDir, image: str | None) -> None:
    """Refuse to drive a run with other code, another image or another run.yaml than it has.

    Args:
        image: digest of the image that the stages will run in.

    Raises:
        ChangedError: naming what changed.
    """
    check_code(run)
    then = json.loads(run.provenance_json.read_text(encoding="utf-8")).get("image")
    if then != image:
        raise ChangedError(
            f"{run.root.name} is made with image {_short(then)}, this is image {_short(image)}. "
            "AMEND=1 goes on all the same, FRESH=1 starts anew"
        )
    config = read_run(run.root)
    if config.run_id != run.root.name:
        raise ChangedError(
            f"{run.run_yaml} was edited: it is the configuration of {config.run_id}. FRESH=1 starts anew"
        )


def check_code(run: RunDir) -> None:
    """Refuse to compute a stage with other code than the run has; does nothing where that is not recorded.

    Raises:
        ChangedError: naming both hashes.
    """
    if not run.provenance_json.is_file():
        return
    then, now = json.loads(run.provenance_json.read_text(encoding="utf-8"))["code"], code_hash()
    if then != now:
        raise ChangedError(
            f"{run.root.name} is made with code {_short(then)}, this is code {_short(now)}. "
            "Run the stage with the former, or go on with this one by starting the run with AMEND=1"
        )


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value[:8]
    return json.dumps(value, sort_keys=True)[:120]


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
