"""A stage whose job asked for GPUs does not go on without them, and says why it stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.cluster import SizedResources, load_cluster, write_cluster
from jobs.container import container_environment
from jobs.failures import ExitRecord, classify
from jobs.stage_job import _container
from jobs.words import CAUSES
from lada import gpus
from lada.errors import NOT_RETRIED, ConfigError, DeviceError
from lada.gpus import ASKED, check_gpus, driver_version, oldest_driver, product_error
from lada.plan import read_plan
from lada.policy import Cause, Change, Failure, decide
from lada.rundir import RunDir, Stage
from tests.fake_runs import make_run
from tests.federation import make
from tests.smallest_models import SETTINGS

ROOT = Path(__file__).parents[1]
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


@pytest.fixture()
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's folder for the file in which the kernel states its driver, and for an nvidia-smi."""
    monkeypatch.setattr(gpus, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def has(monkeypatch: pytest.MonkeyPatch, count: int, *, cuda: str | None = "13.0", says: str = "") -> None:
    """This torch's CUDA and what it sees."""

    def init() -> None:
        if says:
            raise RuntimeError(f"{says}\nsecond line")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def nvidia_smi(folder: Path, text: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


# -- what the stage does


@pytest.mark.usefixtures("smallest_lab", "no_fsync")
@pytest.mark.parametrize(
    "start", [["lada"], ["lada.torchrun", "--standalone", "--nproc-per-node=2", "-m", "lada"]]
)
def test_a_real_stage_ends_where_its_gpu_is_not(start: list[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = make(tmp_path, *SETTINGS, "rounds=1", small=False)
    asked = ["--run", str(run.root), "--party", "client-1", "--stage", "r00-prepare"]
    done = subprocess.run(
        [sys.executable, "-m", *start, "step", *asked],
        env={**os.environ, ASKED: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == DeviceError.exit_code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "DeviceError: client-1: the cluster file asks for gpus: 1 on a node, and torch sees 0"
    )
    assert torch.__version__ in last and "make doctor" in last
    assert not run.is_committed(Stage(0, "prepare", "client-1"))


def test_without_the_variable_a_stage_goes_on_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 0)
    for environment in ({}, {ASKED: ""}, {ASKED: "0"}):
        check_gpus("client-1", environment)
    has(monkeypatch, 2)
    for asked in ("1", "2"):
        check_gpus("client-1", {ASKED: asked})


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LADA_GPUS='two'"):
        check_gpus("client-1", {ASKED: "two"})


def test_an_old_driver_is_named_with_what_it_would_have_to_be(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node / "version").write_text(PROPRIETARY)
    said = "The NVIDIA driver on your system is too old (found version 12020)."
    has(monkeypatch, 0, says=said)
    with pytest.raises(DeviceError) as found:
        check_gpus("server", {ASKED: "4"})
    text = str(found.value)
    for part in (
        "server: ",
        "gpus: 4",
        "torch sees 0",
        "CUDA 13.0",
        "driver 535.129.03",
        "580 or newer",
        said,
    ):
        assert part in text
    assert "second line" not in text and "\n" not in text
    assert "Ask for a driver of 580" in text and "--nv" not in text


def test_what_to_do_fits_what_is_seen(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(count: int, cuda: str | None = "13.0") -> str:
        has(monkeypatch, count, cuda=cuda)
        with pytest.raises(DeviceError) as found:
            check_gpus("server", {ASKED: "4"})
        return str(found.value)

    assert "apptainer --nv" in mend(0) and "no driver to be seen" in mend(0)
    (node / "version").write_text(OPEN)
    assert "Slurm may have granted none" in mend(0)
    assert "Slurm granted fewer" in mend(3)
    assert "CUDA build" in mend(0, None)


def test_the_driver_is_told_by_the_kernel_or_by_nvidia_smi(node: Path) -> None:
    assert driver_version() is None
    nvidia_smi(node, "echo 550.54.15; echo 550.54.15")
    assert driver_version() == "550.54.15"
    nvidia_smi(node, "echo No devices were found; exit 6")
    assert driver_version() is None
    for text, version in ((PROPRIETARY, "535.129.03"), (OPEN, "580.65.06")):
        (node / "version").write_text(text)
        assert driver_version() == version


@pytest.mark.parametrize(("cuda", "oldest"), [("13.0", 580), ("12.6", 525), ("99.0", None), (None, None)])
def test_the_oldest_driver(cuda: str | None, oldest: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert oldest_driver() == oldest


# -- what the host passes, and does about it


def environment_of(run: RunDir, tmp_path: Path, **changes: object) -> dict[str, str]:
    site = load_cluster("a800").model_copy(update={"models": None, "lab": None, **changes})
    write_cluster(run, site)
    run.provenance_json.write_text("{}")
    return _container(run, Stage(1, "learn", "client-1"), "01-ab-0", 1, tmp_path)[1]


def test_the_host_passes_on_what_it_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert read_plan(run).parties
    name, four = f"APPTAINERENV_{ASKED}", (SizedResources(up_to=80, gpus=4, ranks=4),)
    assert environment_of(run, tmp_path, resources=four)[name] == "4"
    assert name not in environment_of(run, tmp_path, resources=(SizedResources(up_to=80),))
    # A site without --nv asks for GPUs that no container is meant to see (devcluster.yaml).
    assert name not in environment_of(run, tmp_path, resources=four, nvidia=False)
    assert name not in container_environment(load_cluster("a800"), threads=1, job={})


def test_another_node_is_tried_once_and_then_the_run_stops() -> None:
    record = ExitRecord(DeviceError.exit_code, "DeviceError: …", "n7", 1.0, 2.0)
    cause = classify("FAILED", record, "", begun=True)
    assert cause == Cause.NO_GPU and DeviceError.exit_code not in NOT_RETRIED and str(cause) in CAUSES
    first = decide([Failure(cause, "n7")], max_attempts=9)
    assert first.action == "retry" and first.change == Change(exclude=("n7",))
    second = decide([Failure(cause, "n7"), Failure(cause, "n8")], max_attempts=9)
    assert second.action == "stop" and "make doctor" in second.reason


# -- the doctor's program


def test_the_product_that_a_gpu_is_tried_with() -> None:
    """On the CPU: rounding to 8 bits leaves an error, and it is far below what counts as wrong."""
    assert 1e-4 < product_error("cpu") < 5e-3


def test_the_doctor_s_program_says_what_it_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lada.gpus"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    first = json.loads(done.stdout.splitlines()[0])
    assert first["torch"] == torch.__version__ and first["cuda"] == torch.version.cuda
    if not torch.cuda.is_available():
        assert done.returncode == DeviceError.exit_code
        assert "DeviceError: a node's job" in done.stderr.splitlines()[-1]
    has(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A800")
    monkeypatch.setattr(gpus, "product_error", lambda device: 0.001)
    monkeypatch.setattr("lada.zero.deepspeed_version", lambda: "0.17")
    *_, last = gpus.tried()
    assert (last["name"], last["gpus"], last["error"], last["deepspeed"]) == ("A800", 1, 0.001, "0.17")
