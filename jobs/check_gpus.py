"""The GPU part of the doctor's job on a compute node: one is asked for, and tried inside the image."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.batch import gpu_parameters
from jobs.cluster import ROOT, Cluster, Resources
from jobs.container import container_argv, container_environment, host_binds
from jobs.finding import Finding, fail, ok, warn

MEMORY_MB = 8192
"""What CUDA, its libraries and DeepSpeed may take of the host's memory."""
SECONDS = 240.0
"""What torch, CUDA and DeepSpeed may take to come up from a cold file system, once the job runs."""
BF16_ERROR = 1e-2
"""Relative error that a bfloat16 product may have: inputs are exact, its result is rounded to 8 bits."""
GRANTED = '${CUDA_VISIBLE_DEVICES+"APPTAINERENV_CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"}'
"""For the node's shell: the GPU that Slurm gave the job."""
OLDER = "or an image for an older driver (README, step 2)"


def line_with_gpus(cluster: Cluster) -> Resources | None:
    """The first line of the cluster file whose stages get GPUs; None where none do."""
    return next((line for line in cluster.resources if line.gpus and cluster.nvidia), None)


def one_gpu(cluster: Cluster) -> dict[str, str]:
    """Options of sbatch that ask for one GPU as stages do; empty where they ask for none."""
    line = line_with_gpus(cluster)
    if line is None:
        return {}
    found = gpu_parameters(line.model_copy(update={"gpus": 1}), cluster)
    return {name.replace("_", "-"): str(value) for name, value in found.items()} | {"mem": f"{MEMORY_MB}M"}


def inside(cluster: Cluster, runs: Path, command: Sequence[str], *, gpus: int = 0) -> list[str]:
    """Lines of a batch script that run a command in the image as a stage is run; a subshell's content.

    Raises:
        ConfigError: something that the container has to see is not there.
    """
    container = container_argv(cluster, host_binds(cluster, runs.resolve()), command, pwd=ROOT)
    # What a login shell says of devices and jobs is not the node's: there the job's own GPU goes inside.
    here = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "SLURM_"))}
    environment = container_environment(cluster, threads=1, job=here, gpus=gpus)
    stated = [f"{key}={value}" for key, value in environment.items() if key.startswith("APPTAINERENV_")]
    return [*cluster.setup, f"env {GRANTED} {shlex.join(stated)} {shlex.join(container)}"]


def gpu_lines(cluster: Cluster, runs: Path, folder: Path, out: str) -> list[str]:
    """Lines of the job's script that try a GPU and write ``device=`` and ``device_said=``; none without GPUs.

    Args:
        out: the file that is written, quoted.

    Raises:
        ConfigError: something that the container has to see is not there.
    """
    if line_with_gpus(cluster) is None:
        return []
    log = shlex.quote(str(folder / "gpu.log"))
    return [
        "(",
        *inside(cluster, runs, ["python", "-m", "lada.gpus"], gpus=1),
        f") > {log} 2>&1",
        f"""echo "device=$(grep -a '^{{' {log} | tail -n 1)" >> {out}""",
        f"""echo "device_said=$(grep -av '^{{' {log} | grep -a . | tail -n 1)" >> {out}""",
    ]


def judge_gpus(seen: Mapping[str, str], cluster: Cluster) -> Iterator[Finding]:
    """What the job saw of GPUs: the host's nvidia-smi, then torch and DeepSpeed in the image."""
    if not cluster.nvidia:
        return
    count, wanted = int(seen.get("gpus") or 0), line_with_gpus(cluster) is not None
    if count or not wanted:
        yield ok("GPUs there", f"{count} given to the job")
    else:
        mend = "gpu_option, gpu_type, partition in the cluster file; `nvidia: false` where there are none"
        yield fail("GPUs there", "the job asked for one and saw none", mend)
    if wanted:
        found, said = _parsed(seen.get("device", "")), seen.get("device_said") or "it said nothing"
        yield _product(found, said)
        if "error" in found:
            yield _deepspeed(found, said, cluster)


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _product(found: Mapping[str, Any], said: str) -> Finding:
    """Torch in the image, on the node's GPU."""
    subject, driver, oldest = "CUDA inside", found.get("driver"), found.get("oldest_driver")
    if not found:
        return fail(subject, f"`python -m lada.gpus` in the image: {said}", "see the container's line above")
    versions = f"CUDA {found.get('cuda')}, driver {driver or 'not to be seen'}"
    if found.get("cuda") is None:
        return fail(
            subject,
            f"the image has torch {found.get('torch')}, a CPU build",
            "definition: containers/lada.def",
        )
    if "gpus" not in found:
        mend = "gpu_option, gpu_type and partition in the cluster file"
        if driver is None:
            mend = "nvidia: true in the cluster file (apptainer --nv), and nodes that have a driver"
        elif oldest is not None and int(str(driver).partition(".")[0]) < oldest:
            mend = f"a driver of {oldest} or newer on the nodes, {OLDER}"
        return fail(subject, f"torch sees no GPU ({versions}): {said}", mend)
    what = f"{found.get('name')}, {versions}"
    if "error" not in found:
        return fail(subject, f"{what}: it does not compute: {said}", f"a newer driver, {OLDER}; another node")
    if not found["error"] < BF16_ERROR:  # neither is NaN
        text = f"{what}: a bfloat16 product is off by {found['error']:.1e}"
        return fail(subject, text, "the GPU or its driver is broken: tell the site's admins")
    return ok(subject, f"{what}: bfloat16 products are right")


def _deepspeed(found: Mapping[str, Any], said: str, cluster: Cluster) -> Finding:
    if "deepspeed" in found:
        return ok("DeepSpeed there", f"{found['deepspeed']} comes up with the GPU")
    needed = any(line.nodes * line.ranks_per_node > 1 for line in cluster.resources)
    mend = "make image; its base must have nvcc of torch's CUDA release (containers/lada.def)"
    return (fail if needed else warn)("DeepSpeed there", f"cannot be imported: {said}", mend)
