"""What a run was made with: code, packages, weights, host. A run goes on only with what it began with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lada.config import ORACLE, nested
from lada.errors import ChangedError
from lada.layers import parse_yaml
from lada.rundir import RunDir, dump_json, sha256, write_atomic

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "peft", "pydantic", "safetensors", "scikit-learn", "tokenizers", "torch", "transformers")
KERNEL_NAMES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)
"""Environment variables that choose a math library's kernels, and so last bits."""
FIXED = (
    "scenario",
    "tier",
    "size",
    "dataset",
    "shots",
    "seed",
    "rounds",
    "template",
    "parties",
    "data",
    "lora",
    "method.name",
)
"""Keys of run.yaml that a run's data, plan and adapters are made of: no run goes on with other ones."""


def code_hash() -> str:
    """sha256 over the Python files that decide a run's numbers: not reports, matrices and pre-training.

    Choice: how the lab's weights were made does not count, the weights have hashes of their own.
    """
    digest = hashlib.sha256()
    skipped = {ROOT / "lada" / name for name in ("report", "matrix", "lab")}
    for path in sorted((ROOT / "lada").rglob("*.py")):
        if path.parent in skipped and path.name != "__init__.py":
            continue
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def host_facts() -> dict[str, Any]:
    """What only the host knows: inside an image there is no git. A copy of a checkout may state its own.

    What runs have written to results/ is no change of the checkout.
    """
    status = os.environ.get("LADA_GIT_STATUS", _git("status", "--porcelain", "--", ".", ":!results"))
    return {
        "git": os.environ.get("LADA_GIT_SHA") or _git("rev-parse", "HEAD"),
        "git_dirty": bool(status),
        "host": platform.node(),
        "command": sys.argv,
    }


def collect(
    run_yaml: str, weights: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that provenance.json states.

    Args:
        run_yaml: content of run.yaml.
        weights: model id -> sha256 of its weights.
        facts: of the host, `host_facts` and ``image`` (digest), where this process runs in an image.
    """
    return {
        "code": code_hash(),
        "image": None,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "weights": dict(weights),
        "run_yaml": sha256(run_yaml.encode()),
        "config": parse_yaml(run_yaml, "run.yaml"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **(host_facts() if facts is None else facts),
    }


def run_hashes(run: RunDir) -> frozenset[str]:
    """sha256 of run.yaml and of what it was amended from: a commit of this run carries one of them."""
    then = recorded(run)
    hashes = [one["run_yaml"] for one in (then, *then.get("amended_from", [])) if "run_yaml" in one]
    return frozenset([_run_hash(run), *hashes])


def check(run: RunDir, now: Mapping[str, Any], *, amend: bool, finished: bool) -> str | None:
    """Compare with what the run began with.

    Returns:
        A remark for a person when a finished run was made with something else; None when all is the same.

    Raises:
        ChangedError: for an unfinished run, unless ``amend``; names what changed and what to do. Also with
            ``amend`` when run.yaml now asks for other data, parties or rounds than the run's folder has, or
            when nothing says what the run began with.
    """
    then = recorded(run)
    if not {"run_yaml", "config"} <= then.keys():
        unknown = (
            f"{run.provenance_json} is missing or lacks run.yaml as it was: nothing says what made this run"
        )
        if finished:
            return unknown
        raise ChangedError(f"{unknown}. Put it back, or FRESH=1 starts anew")
    changed = [
        f"{key}: {_short(then.get(key))} -> {_short(now[key])}"
        for key in ("code", "packages", "weights", "image")
        if then.get(key) != now[key]
    ]
    edited = then["run_yaml"] != now["run_yaml"]
    edits = dict(_differences(then["config"], now["config"]))
    if edited:
        changed.append(f"{run.run_yaml} was edited: {', '.join(edits.values()) or 'only its spelling'}")
    if not changed:
        return None
    listed = "; ".join(changed)
    if finished:
        return f"this run was made with something else ({listed}); FRESH=1 makes it anew"
    if any(key.startswith(FIXED) for key in edits) or _given(then["config"]) != _given(now["config"]):
        raise ChangedError(f"{listed}: the run's folder is made of that. Put it back, or FRESH=1 starts anew")
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
    check_stage(run)
    then = recorded(run).get("image")
    if then != image:
        raise ChangedError(
            f"{run.root.name} is made with image {_short(then)}, this is image {_short(image)}. "
            "AMEND=1 goes on all the same, FRESH=1 starts anew"
        )


def check_stage(run: RunDir) -> None:
    """Refuse to compute a stage with other code or another run.yaml than the run has.

    Does nothing where that is not recorded.

    Raises:
        ChangedError: naming both hashes.
    """
    then = recorded(run)
    for what, key, now in (("code", "code", code_hash()), ("run.yaml", "run_yaml", _run_hash(run))):
        if then.get(key, now) != now:
            raise ChangedError(
                f"{run.root.name} is made with {what} {_short(then[key])}, this is {what} {_short(now)}. "
                "Put the former back, or go on with this one by starting the run with AMEND=1"
            )


def recorded(run: RunDir) -> dict[str, Any]:
    """What provenance.json holds; empty where there is none.

    Raises:
        ChangedError: it is no JSON object.
    """
    if not run.provenance_json.is_file():
        return {}
    try:
        found = json.loads(run.provenance_json.read_bytes())
    except ValueError as error:
        raise ChangedError(f"{run.provenance_json} is not JSON ({error}): put it back, or FRESH=1") from error
    if not isinstance(found, dict):
        raise ChangedError(f"{run.provenance_json} holds no JSON object: put it back, or FRESH=1 starts anew")
    return found


def _run_hash(run: RunDir) -> str:
    return sha256(run.run_yaml.read_bytes())


def _given(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the parties' folders hold for the method's sake: a replayed selection, opened answers."""
    options = nested(config["method"])
    return [(key, value) for key, value in options if key == "replay" or value == ORACLE]


def _differences(then: Any, now: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and a line for each value that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({*then, *now}):
            yield from _differences(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif then != now:
        yield key, f"{key} {json.dumps(then)} -> {json.dumps(now)}"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value[:8]
    return json.dumps(value, sort_keys=True)[:120]


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
