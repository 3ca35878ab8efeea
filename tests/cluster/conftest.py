"""A real Slurm, a real Apptainer, an ordinary user: `make test-cluster` brings them up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.harness import ROOT, SMALL, Suite

DEVCLUSTER = Path(os.environ.get("DEVCLUSTER", "/opt/lada-devcluster"))


def missing(reason: str) -> NoReturn:
    """Skip, or fail where `make test-cluster` promised a cluster."""
    if os.environ.get("LADA_NEED_CLUSTER"):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a cluster."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def devcluster() -> Path:
    """The folder of a development cluster that answers; the test is skipped where there is none."""
    conf = DEVCLUSTER / "etc" / "slurm.conf"
    if os.geteuid() != 0:
        missing("needs root, to become the cluster's user and to kill its daemons")
    if not conf.is_file() or shutil.which("scontrol") is None:
        missing(f"no development cluster in {DEVCLUSTER}: make cluster-up")
    answer = subprocess.run(
        ["scontrol", "ping"], env={**os.environ, "SLURM_CONF": str(conf)}, capture_output=True, check=False
    )
    if answer.returncode:
        missing("the development cluster does not answer: make cluster-up")
    return DEVCLUSTER


@pytest.fixture(scope="session")
def suite(devcluster: Path) -> Suite:
    """A copy of this checkout of the tests' own, so that nobody edits it under their feet."""
    return open_suite(devcluster)


def open_suite(devcluster: Path, name: str = os.environ.get("LADA_TEST_SUITE", "test-suite")) -> Suite:
    """Copy the checkout for a cluster's user, and see what environment that user has."""
    folder = devcluster / name
    environment = {**os.environ, "DEVCLUSTER": str(devcluster), "DEVSUITE": str(folder)}
    done = subprocess.run(
        [ROOT / "slurm" / "devcluster" / "as-user", "env", "-0"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair)
    return Suite(
        folder, pairs["USER"], {name: value for name, value in pairs.items() if "PYTEST" not in name}
    )


@pytest.fixture(scope="session")
def expected(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """metrics.csv of the smallest run, undisturbed and in one process."""
    return suite.in_process(tmp_path_factory.mktemp("in-process"), *SMALL)
