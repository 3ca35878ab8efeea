"""`python -m jobs.image --cluster NAME`: build a cluster's image where its inputs changed; and its digest.

The image holds the locked packages and nothing of LaDa: code is bound read-only when a stage runs, so that
editing it does not mean building again. Both are checked: a run goes on only with its code and its image.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import wheels
from jobs.apptainer_build import Build
from jobs.cluster import ROOT, Cluster, expand, find_cluster
from jobs.wheels import Report
from lada.errors import ConfigError, LadaError
from lada.rundir import dump_json, sha256, write_atomic

CONTAINERS = ROOT / "containers"
WHEELHOUSES = ROOT / "build" / "wheelhouse"


@dataclass(frozen=True)
class Definition:
    """An Apptainer definition file of this project.

    Attributes:
        python: version of Python inside.
        torch: build of torch: ``cpu`` or ``cuda``.
        base: local image that it builds on; None where it names its base itself.
    """

    path: Path
    python: str
    torch: str
    base: Path | None

    @property
    def inputs(self) -> str:
        """Hash of all that the image is made of."""
        files = (self.path, CONTAINERS / "post.sh", CONTAINERS / "requirements.lock")
        parts = [sha256(path.read_bytes()) for path in files]
        parts += [os.environ.get("TORCH_INDEX", ""), image_digest(self.base) if self.base else ""]
        return sha256(" ".join(parts).encode())


def read_definition(cluster: Cluster) -> Definition:
    """A cluster's definition file.

    Raises:
        ConfigError: when it or its base is absent, or it does not state its Python and its torch.
    """
    path = ROOT / expand(cluster.definition)
    if not path.is_file():
        raise ConfigError(f"cluster '{cluster.name}': there is no definition file {path}")
    text = path.read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\s*(PYTHON|TORCH)=(\S+)\s*$", text, re.MULTILINE))
    if set(stated) != {"PYTHON", "TORCH"} or stated["TORCH"] not in ("cpu", "cuda"):
        raise ConfigError(f"{path}: %arguments has to state PYTHON=<version> and TORCH=cpu or TORCH=cuda")
    return Definition(path, stated["PYTHON"], stated["TORCH"], _base(cluster, text))


def _base(cluster: Cluster, text: str) -> Path | None:
    if "{{ BASE }}" not in text:
        return None
    if cluster.base_image is None:
        raise ConfigError(f"cluster '{cluster.name}': {cluster.definition} needs a base_image")
    base = ROOT / expand(cluster.base_image)
    if not base.is_file():
        raise ConfigError(
            f"there is no base image {base}: `make cluster-up` makes the development cluster's; "
            "elsewhere build one of Debian 12 and name it as base_image"
        )
    return base


def make_image(cluster: Cluster, *, report: Report, wheelhouses: Path = WHEELHOUSES) -> bool:
    """Build a cluster's image as an ordinary user, unless it is there and made of the same inputs.

    Returns:
        Whether it was built.

    Raises:
        ConfigError: naming what is missing and what to do.
    """
    definition, image = read_definition(cluster), cluster.image_path
    inputs = definition.inputs
    if image.is_file() and _record(image).get("inputs") == inputs and _is_recorded(image):
        report(f"{image} is up to date (sha256 {image_digest(image)[:12]})")
        return False
    began = time.monotonic()
    build = Build(cluster, definition.path, definition.base, report)
    build.check_program()
    build.check_folder(image.parent)
    folder = _fill(definition, wheelhouses, report)
    build.check_space(folder, image.parent)
    temporary = image.with_name(f".{image.name}.{secrets.token_hex(4)}.tmp")
    try:
        build.run(folder, temporary, log=_beside(image, ".log"))
        _keep(temporary, image, {"inputs": inputs, "apptainer": build.version()})
    finally:
        temporary.unlink(missing_ok=True)
    size, seconds = image.stat().st_size / 1e6, time.monotonic() - began
    report(f"{image} is built: {size:,.0f} MB, {seconds:.0f} s, sha256 {image_digest(image)[:12]}")
    return True


def image_digest(image: Path) -> str:
    """sha256 of an image file; taken from the record beside it only while size and time of change agree.

    Raises:
        ConfigError: when there is no such file.
    """
    try:
        before = image.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no image {image}: make image CLUSTER=<name>") from error
    if _is_recorded(image):
        return str(_record(image)["digest"])
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _state(before) == _state(image.stat()):
        known = _record(image)
        kept = known if known.get("digest") == digest else {}
        with contextlib.suppress(OSError):  # a folder that only its owner may write
            write_atomic(_beside(image, ".json"), dump_json({**kept, "digest": digest, **_state(before)}))
    return digest


def _is_recorded(image: Path) -> bool:
    record = _record(image)
    return "digest" in record and {key: record.get(key) for key in ("size", "mtime_ns")} == _state(
        image.stat()
    )


def _record(image: Path) -> dict[str, Any]:
    try:
        found = json.loads(_beside(image, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _beside(image: Path, suffix: str) -> Path:
    return image.with_name(image.name + suffix)


def _keep(temporary: Path, image: Path, record: dict[str, Any]) -> None:
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    temporary.replace(image)
    content = {**record, "digest": digest, "built_at": built, **_state(image.stat())}
    write_atomic(_beside(image, ".json"), dump_json(content))


def _fill(definition: Definition, wheelhouses: Path, report: Report) -> Path:
    lock = CONTAINERS / "requirements.lock"
    return wheels.fill(lock, wheelhouses, python=definition.python, torch=definition.torch, report=report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the image of a cluster; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.image", description=__doc__)
    parser.add_argument("--cluster", help="name in configs/clusters; default: the cluster of this host")
    parser.add_argument("--wheels-only", action="store_true", help="fetch the Python packages, no more")
    parser.add_argument("--wheels", type=Path, default=WHEELHOUSES, help="where those are kept")
    options = parser.parse_args(arguments)
    try:
        cluster = find_cluster(options.cluster)
        if options.wheels_only:
            _fill(read_definition(cluster), options.wheels, _say)
        else:
            make_image(cluster, report=_say, wheelhouses=options.wheels)
    except LadaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
