"""Checks of this host's Python, of Apptainer, of the image and of what containers see."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.cluster import ROOT, Cluster, expand
from jobs.container import container_argv, container_environment, host_binds
from jobs.finding import Finding, fail, ok, warn
from jobs.image import image_digest
from lada.errors import ConfigError
from lada.layers import CONFIGS, read_yaml

HOST_PACKAGES = ("submitit", "cloudpickle", "pydantic", "PyYAML", "numpy", "safetensors", "rich")
NEEDED_INSIDE = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "pydantic")
SECONDS = 180.0


def check_host() -> Finding:
    """Python and the packages of the host side; torch is not among them."""
    found = {name: _version(name) for name in HOST_PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return fail(
            "host Python", f"{', '.join(missing)} missing in {sys.prefix}", "make setup, or make submit"
        )
    listed = ", ".join(f"{name} {found[name]}" for name in ("submitit", "pydantic", "rich"))
    extra = ", torch is here too" if importlib.util.find_spec("torch") else ""
    return ok("host Python", f"{platform.python_version()}, {listed}{extra}")


def check_program(cluster: Cluster) -> Finding:
    """Apptainer on this host."""
    program = cluster.apptainer[0]
    if shutil.which(program) is None:
        mend = "load its module, or name the program as apptainer: [/path/to/apptainer]"
        if cluster.setup:
            return warn("Apptainer", f"no '{program}' here; `setup` may load it on the nodes", mend)
        return fail("Apptainer", f"no program '{program}'", mend)
    done = _run([program, "--version"], dict(os.environ))
    if done.returncode:
        return fail("Apptainer", f"`{program} --version`: {_last(done)}", "ask the site's admins")
    return ok("Apptainer", done.stdout.strip())


def check_image_file(cluster: Cluster) -> Finding:
    """The image, and its digest."""
    try:
        digest = image_digest(cluster.image_path)
    except ConfigError:
        return fail("image", f"no {cluster.image_path}", f"make image CLUSTER={cluster.name}")
    return ok("image", f"{cluster.image_path}, sha256 {digest[:12]}")


def check_binds(cluster: Cluster) -> Finding:
    """Every folder that containers are to see is there."""
    try:
        sources = [Path(expand(bind.partition(":")[0])) for bind in cluster.binds]
    except ConfigError as error:
        return fail("binds", str(error), f"binds: in configs/clusters/{cluster.name}.yaml")
    missing = [str(path) for path in sources if not path.exists()]
    if missing:
        mend = f"binds: in configs/clusters/{cluster.name}.yaml; without it Apptainer starts no container"
        return fail("binds", f"no {', '.join(missing)}", mend)
    return ok("binds", f"{len(sources)} extra folders, all there" if sources else "none beyond the run's own")


def check_models(cluster: Cluster) -> Finding:
    """The models of Table I, for the paper tier; the lab tier has its own."""
    if cluster.models_path is None:
        return ok("models", "no folder named: the lab tier alone can run")
    wanted: dict[str, list[str]] = {}
    for path in sorted((CONFIGS / "scenarios").glob("*.yaml")):
        for party in read_yaml(path).get("parties", []):
            wanted.setdefault(str(party["model"]).rpartition("/")[2], []).append(path.stem)
    missing = {name: who for name, who in wanted.items() if not (cluster.models_path / name).is_dir()}
    if not missing:
        return ok("models", f"all {len(wanted)} in {cluster.models_path}")
    scenarios = sorted({one for who in missing.values() for one in who})
    return warn(
        "models",
        f"{len(missing)} of {len(wanted)} are not in {cluster.models_path} (e.g. {next(iter(missing))})",
        f"paper tier only, scenarios {', '.join(scenarios)}: make stage, where there is a network; "
        f"for TIER=rehearsal: make rehearsal-models CLUSTER={cluster.name}",
    )


def check_inside(cluster: Cluster, runs: Path) -> Iterator[Finding]:
    """A container runs as this user, has what is needed, and loads a model without a network."""
    mend = (
        "`make image`; user namespaces must be allowed (sysctl kernel.unprivileged_userns_clone, /etc/subuid)"
    )
    try:
        done = run_inside(cluster, runs, ["python", "-m", "lada.lab.selfcheck"])
    except ConfigError as error:
        yield fail("container", str(error), f"binds, models in configs/clusters/{cluster.name}.yaml")
        return
    except subprocess.TimeoutExpired:
        yield fail("container", f"no answer within {SECONDS:.0f} s", "is the image on a slow file system?")
        return
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        yield fail("container", f"exit code {done.returncode}: {_last(done)}", mend)
        return
    yield ok("container", f"runs as this user, Python {found['python']}")
    yield from judge_inside(found, cluster)


def judge_inside(found: dict[str, Any], cluster: Cluster) -> Iterator[Finding]:
    """What the image said of itself (lada.lab.selfcheck)."""
    packages = found["packages"]
    missing = [name for name in NEEDED_INSIDE if packages.get(name) is None]
    listed = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if packages[name]
    )
    if missing:
        yield fail("packages", f"no {', '.join(missing)} in the image", "make image")
    elif packages.get("deepspeed") is None and any(
        line.nodes * line.ranks_per_node > 1 for line in cluster.resources
    ):
        yield fail("packages", f"{listed}; no deepspeed, which more than one rank needs", "make image")
    else:
        yield ok("packages", f"{listed}, deepspeed {packages.get('deepspeed') or 'none'}")
    yield ok("offline", f"the lab's {found['model']} loads and computes without a network")
    if cluster.nvidia and not found["gpus"]:
        yield warn(
            "GPUs", "the image sees none on this host", "fine on a login node; see the compute node's line"
        )
    elif cluster.nvidia:
        yield ok("GPUs", f"{found['gpus']} on this host, CUDA {found['cuda']}")


def run_inside(cluster: Cluster, runs: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a trusted command in the image.

    Raises:
        ConfigError: something that the container has to see is not there.
    """
    argv = container_argv(cluster, host_binds(cluster, runs.resolve()), arguments, pwd=ROOT)
    return _run(argv, container_environment(cluster, threads=1, job=os.environ))


def _run(argv: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
