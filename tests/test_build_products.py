"""From an empty folder of runs to every table, figure and page: what `make` does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.smallest_models import SETTINGS
from tests.test_make import clone

__all__ = ["clone"]
pytestmark = pytest.mark.slow
TABLE5 = ("matrix", "MATRIX=table5", "TIER=lab", "SIZE=tiny", "PARALLEL=2")
SMALL = {key: yaml.safe_load(value) for key, value in (one.split("=", 1) for one in SETTINGS)}


@pytest.fixture(scope="module")
def checkout(clone: Path, smallest_models: Path) -> Iterator[Path]:
    """A checkout whose Table V is small: two arms, a scenario, two seeds, models that take milliseconds."""
    path = clone / "configs" / "matrices" / "table5.yaml"
    content = yaml.safe_load(path.read_text())
    content.update(scenarios=["1"], shots=[0], seeds=[0, 1], settings=SMALL)
    content.update(arms=["lada", "without-filter"], contrasts=[["lada", "without-filter"]])
    path.write_text(yaml.safe_dump(content))
    shutil.rmtree(clone / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADA_LAB_WEIGHTS", str(smallest_models))
        yield clone


def make(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTEST"))}
    return subprocess.Popen(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def done(folder: Path, *arguments: str) -> str:
    process = make(folder, *arguments)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def products(folder: Path) -> dict[str, bytes]:
    """Every file below results, figures' among them."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """The checkout with all that is made of Table V."""
    done(checkout, *TABLE5)
    done(checkout, "tables", "figures", "report")
    return checkout


def test_every_output_of_table_5_is_there(built: Path) -> None:
    found = set(products(built))
    for name in ("table5.md", "table5.tex", "table5-long.csv", "table5-wide.csv"):
        assert f"lab/tables/{name}" in found
    assert {"lab/table5.csv", "lab/table5-runs.csv", "lab/report.html"} <= found


def test_a_number_is_traced_to_its_runs(built: Path) -> None:
    said = done(built, "explain", "CELL=table5/scenario 1/zero-shot/client-1/lada")
    lada = [path.parent for path in (built / "runs").glob("1-lada-*/run.yaml")]
    named = [run.name for run in lada if run.name in said]
    assert {name.split("-s")[1][0] for name in named} == {"0", "1"}, "the runs of both seeds"


def test_the_convergence_toy(checkout: Path) -> None:
    shown = done(checkout, "convergence")
    assert all(f"\n{control}," in shown for control in ("unbiased", "biased", "constant-step"))
    assert (checkout / "results" / "convergence.csv").is_file()
