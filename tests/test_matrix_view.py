"""Views of a matrix on the host: the grid in every state, and which of its runs are submitted."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.__main__ import main
from jobs.cluster import load_cluster
from jobs.matrix_cells import CellView, look_at_cells
from jobs.matrix_text import render
from lada.config import Options
from lada.errors import ChangedError
from lada.lease import lease
from lada.ledger import Ledger
from lada.rundir import RunDir
from tests.fake_runs import make_run

PLACE = ("1", "lab-math", 0)
DONE = CellView("lada", PLACE, 0, "", "run-0", "done", 100.0, (), ("--method", "lada"), "table9")
pytestmark = pytest.mark.usefixtures("no_fsync")


def text_of(views: list[CellView], width: int = 80) -> str:
    console = Console(width=width, file=(shown := io.StringIO()), highlight=False)
    console.print(render("table9", views, width))
    return shown.getvalue()


def test_the_grid_has_a_character_a_seed_and_says_what_is_left() -> None:
    views = [
        DONE,
        replace(DONE, seed=1, state="running"),
        replace(DONE, seed=2, state="to do"),
        replace(DONE, place=("3", "lab-cot", 1), state="failed"),
        replace(DONE, arm="fedkd", state="queued"),
        replace(DONE, arm="fedkd", seed=1, state="begun"),
    ]
    views = [replace(view, run_id=f"run-{number}") for number, view in enumerate(views)]
    shown = text_of(views)
    assert "table9: 6 runs: 1 done, 1 running, 1 queued, 1 failed, 1 begun, 1 to do" in shown
    assert "about 8 min of work left" in " ".join(shown.split()), "five runs of 100 s"
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["lada"] == ["#>.", "x"] and rows["fedkd"] == ["q~"]


def test_a_grid_of_settings_has_a_line_a_point() -> None:
    shown = text_of([replace(DONE, at=f"share={share}", run_id=share) for share in ("0.2", "0.5")])
    assert "lada share=0.2" in shown and "lada share=0.5" in shown


@pytest.mark.parametrize(
    ("arms", "places", "line"),
    [
        (12, 2, "arm-number-11 # #"),
        (2, 12, "11 lab-math 0-shot # #"),
        (12, 12, "arm-number-11 11 lab-math 0-shot #"),
    ],
)
def test_no_run_is_cut_away_whatever_the_matrix_s_form(arms: int, places: int, line: str) -> None:
    views = [
        replace(DONE, arm=f"arm-number-{arm}", place=(str(place), "lab-math", 0), run_id=f"{arm}-{place}")
        for arm in range(arms)
        for place in range(places)
    ]
    shown = text_of(views)
    assert line in [" ".join(row.split()) for row in shown.splitlines()]
    assert "…" not in shown and shown.count("#") == arms * places + 1, "and one in the legend"


def test_a_list_of_matrices_has_a_grid_each_and_counts_a_run_once() -> None:
    shown = text_of([replace(DONE, matrix="table2"), replace(DONE, matrix="table4", arm="same")])
    assert "table9: 1 runs: 1 done" in shown and "table2: 1 runs" in shown and "table4: 1 runs" in shown


def test_nothing_left_and_nothing_done_need_no_estimate() -> None:
    assert "left" not in text_of([DONE])
    assert "left" not in text_of([replace(DONE, state="to do", seconds=0.0)])


def cell(run: RunDir, *, finished: bool = False) -> dict[str, Any]:
    place = dict(zip(("scenario", "dataset", "shots"), PLACE, strict=True))
    return {
        "matrix": "x",
        "arm": "lada",
        "at": "",
        "seed": 0,
        "run_id": run.root.name,
        "finished": finished,
        "after": [],
        "arguments": [],
        **place,
    }


def states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: RunDir) -> list[str]:
    class Done:
        returncode = 0
        stdout = json.dumps([cell(run)])

    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: Done())
    return [one.state for one in look_at_cells("x", str(tmp_path), tier=None, size=None, cluster=None)]


def test_what_a_run_folder_says_is_what_the_grid_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(monkeypatch, tmp_path, RunDir(tmp_path / "none")) == ["to do"]
    run = make_run(tmp_path, "rounds=1")
    assert states(monkeypatch, tmp_path, run) == ["begun"]
    with lease(run.lease):
        assert states(monkeypatch, tmp_path, run) == ["running"]
    run.plan_json.unlink()
    assert states(monkeypatch, tmp_path, run) == ["begun"], "killed while it was made"


def test_the_command_asks_lada_for_the_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["matrix-status", "lab-threshold", "--runs", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["matrix"] == "lab-threshold" and shown["states"] == {"to do": len(shown["runs"])}
    assert {run["seed"] for run in shown["runs"]} == {0, 1, 2}
    assert main(["matrix-status", "lab-thresh", "--runs", str(tmp_path)]) == 2
    assert "did you mean 'lab-threshold'" in capfd.readouterr().err


def test_a_grid_needs_no_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not load_cluster("a800").image_path.exists(), "of a site that this machine is not"
    runs = tmp_path / "none"
    arguments = ["matrix-status", "table2", "--tier", "paper", "--cluster", "a800", "--runs", str(runs)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["states"] == {"to do": 120}
    assert not runs.exists(), "nothing is written"


class Cluster(Options):
    """Stands for one: nothing here reaches Slurm."""


@pytest.fixture()
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be submitted, as arguments of `lada init`."""
    found: list[list[str]] = []
    monkeypatch.setattr("jobs.matrix.find_cluster", lambda name: Cluster())
    monkeypatch.setattr("jobs.matrix.ensure_image", lambda cluster: None)
    monkeypatch.setattr("jobs.matrix.make_run", lambda options, cluster: [options.method, options.set])
    monkeypatch.setattr("jobs.matrix.submit_driver", lambda run, cluster: found.append(run))
    return found


def show(monkeypatch: pytest.MonkeyPatch, views: list[CellView]) -> None:
    monkeypatch.setattr("jobs.matrix.look_at_cells", lambda *arguments, **options: views)


def test_what_is_missing_is_submitted_and_what_replays_waits(
    submitted: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = replace(DONE, run_id="run-1", state="to do", arguments=("--method", "fedkd", "--set", "seed=1"))
    failed = replace(todo, run_id="run-2", state="failed", arguments=("--method", "sft"))
    waits = replace(todo, run_id="run-3", after=("run-1",), arguments=("--method", "random"))
    follows = replace(todo, run_id="run-4", after=("run-0",), arguments=("--method", "oracle"))
    busy = [replace(todo, run_id="run-5", state="running"), replace(todo, run_id="run-6", state="queued")]
    show(monkeypatch, [DONE, todo, failed, waits, follows, *busy])
    assert main(["matrix", "x", "--cluster", "c"]) == 0
    assert submitted == [["fedkd", ["seed=1"]], ["sft", []], ["oracle", []]]
    assert "7 runs: 1 done, 3 submitted now, 1 still to submit" in capsys.readouterr().out

    submitted.clear()
    assert main(["matrix", "x", "--cluster", "c", "--limit", "3"]) == 0
    assert submitted == [["fedkd", ["seed=1"]]], "two are at work already"
    assert "1 submitted now, 3 still to submit" in capsys.readouterr().out
    submitted.clear()
    assert main(["matrix", "x", "--cluster", "c", "--limit", "1"]) == 0 and submitted == []


def test_a_run_that_is_refused_stands_in_no_other_s_way(
    submitted: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = replace(DONE, run_id="run-1", state="begun", arguments=("--method", "sft"))
    second = replace(first, run_id="run-2", arguments=("--method", "wasp"))
    show(monkeypatch, [first, second])

    def changed(options: argparse.Namespace, cluster: object) -> list[str]:
        if options.method == "sft" and not options.amend:
            raise ChangedError("the code is another")
        return [options.method]

    monkeypatch.setattr("jobs.matrix.make_run", changed)
    assert main(["matrix", "x", "--cluster", "c", "--limit", "1"]) == ChangedError.exit_code
    assert submitted == [["wasp"]], "what was refused takes no room"
    shown = capsys.readouterr()
    assert shown.err == "refused: run-1: the code is another\n" and "1 still to submit" in shown.out
    assert "submits more" not in shown.out
    submitted.clear()
    assert main(["matrix", "x", "--cluster", "c", "--amend"]) == 0 and submitted == [["sft"], ["wasp"]]


def test_a_run_that_failed_or_waits_under_its_driver_is_shown_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "rounds=1")
    ledger = Ledger(run.ledger_jsonl)
    ledger.write("driver-began")
    ledger.write("paused", reason="the disk is full")
    with lease(run.lease):
        assert states(monkeypatch, tmp_path, run) == ["running"], "it goes on by itself"
    ledger.write("stopped", reason="no such dataset", exit_code=3)
    assert states(monkeypatch, tmp_path, run) == ["failed"]
