"""Sweeps: a grid from the command line as a matrix; the same sweep goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.__main__ import main
from lada.errors import ConfigError
from lada.matrix.cells import expand
from lada.matrix.definition import Matrix, read_matrix
from lada.matrix.rows import read_rows
from lada.matrix.sweep import sweep, write_sweep
from tests.smallest_models import SETTINGS

PLACE = {"tier": "lab", "size": "tiny", "scenario": "one-client", "dataset": "lab-math", "shots": 1}


def made(*grid: str, settings: tuple[str, ...] = ()) -> Matrix:
    return sweep(place=PLACE, method="lada", settings=settings, grid=grid, seeds=[0, 1])


def test_a_sweep_is_the_product_of_its_values(tmp_path: Path) -> None:
    found = made("method.beta=0.05,0.1", "method.drop_ties=true,false", settings=("rounds=1",))
    assert found.settings == {"rounds": 1}
    assert found.grid == {"method.beta": (0.05, 0.1), "method.drop_ties": (True, False)}
    assert len(expand(found)) == 2 * 2 * 2 and {cell.shots for cell in expand(found)} == {1}
    path = write_sweep(found, tmp_path)
    assert read_matrix(str(path)) == found and write_sweep(found, tmp_path) == path
    assert write_sweep(made("method.beta=0.05,0.2"), tmp_path) != path


@pytest.mark.parametrize("wrong", ["method.beta", "method.beta=0.1", "=1,2"])
def test_what_is_no_grid_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form key.subkey=value,value"):
        made(wrong)
    with pytest.raises(ConfigError, match=r"not of the form key.subkey=value"):
        made("method.beta=0.1,0.2", settings=("rounds",))


@pytest.mark.slow
@pytest.mark.usefixtures("smallest_lab")
def test_the_command_runs_collects_and_shows_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [
        "--scenario",
        "one-client",
        "--size",
        "tiny",
        "--method",
        "fedkd",
        "--runs",
        str(tmp_path / "runs"),
    ]
    grid = ["--grid", "training.client.learning_rate=1e-4,1e-3", "--out", str(tmp_path / "out")]
    command = ["sweep", *run, *grid, "--set", " ".join((*SETTINGS, "rounds=1"))]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "2 runs: 0 finished, 2 to do" in shown
    assert "| arm | learning_rate=0.0001 | learning_rate=0.001 |" in shown
    (path,) = (tmp_path / "out").glob("sweep-fedkd-*[0-9a-f].csv")
    assert {row.at for row in read_rows(path)} == {"learning_rate=0.0001", "learning_rate=0.001"}
    assert main(command) == 0 and "2 finished, 0 to do" in capsys.readouterr().out
