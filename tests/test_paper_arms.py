"""The paper tier's matrices: what they expand to, that all arms are treated alike, and what they take."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import jobs.__main__
import lada.__main__
from jobs import matrix_plan
from jobs.cluster import ROOT, Cluster, load_cluster
from jobs.paper_plan import estimate
from jobs.submit import add_asked, asked_arguments
from lada.config import SERVER, RunConfig
from lada.layers import CONFIGS, read_yaml
from lada.matrix.cells import Cell, cell_layers, expand
from lada.matrix.definition import Matrix, read_matrix
from lada.matrix.local import Run, run_arguments
from lada.method import load_method, make_plan
from lada.model_facts import model_facts
from lada.runs import resolve_run

RUNS = {"table2": 120, "table3": 120, "table4": 24, "table5": 48, "table6": 48, "fig2": 45}
"""Scenarios x datasets x shots x seeds x arms x grid of the paper's own tables and figures."""
OWN_EPOCHS = {"socratic_cot"}
"""Methods whose own paper fixes the number of passes (configs/methods)."""
TABLE4 = ("matrix-plan", "table4", "--tier", "paper", "--cluster", "a800", "--runs")


@cache
def found(name: str) -> Matrix:
    return read_matrix(name, tier="paper")


@cache
def configs(name: str) -> dict[Cell, RunConfig]:
    """A matrix's runs; seeds change nothing that is looked at here."""
    matrix = found(name).model_copy(update={"seeds": (0,)})
    return {cell: resolve_run(cell_layers(matrix, cell, resolve_run)) for cell in expand(matrix)}


@pytest.mark.parametrize("name", RUNS)
def test_every_table_of_the_paper_expands_to_runs_of_its_own(name: str) -> None:
    assert len(expand(found(name))) == RUNS[name]
    assert (found(name).tier, found(name).size) == ("paper", "paper")
    assert len({one.run_id for one in configs(name).values()}) * len(found(name).seeds) == RUNS[name]
    for cell, one in configs(name).items():
        assert (one.tier, one.rounds, one.data.num_public, one.template) == ("paper", 5, 1000, "plain")
        assert one.dataset.name in ("mathinstruct", "cot-collection") and one.shots == cell.shots


@pytest.mark.parametrize("name", RUNS)
def test_all_arms_of_a_place_train_alike(name: str) -> None:
    """Rates are the models' own, in the paper's ranges; nothing is tuned for one arm.

    Rows that are decoded side by side decide memory; of what is generated, no more than last bits.
    """
    seen: dict[tuple[str, str, int], set[str]] = {}
    for cell, one in configs(name).items():
        for party in one.parties:
            tuning = model_facts(party.model).tuning
            assert party.learning_rate == tuning.lora.distillation and 9e-7 <= party.learning_rate <= 2e-4
            if one.method["name"] not in OWN_EPOCHS:
                own = tuning.epochs.server if party.name == SERVER else tuning.epochs.client
                assert party.epochs == own and 1 <= own <= 5
        roles = one.training.model_dump(exclude={"client": {"epochs"}})
        assert roles["client"]["max_steps"] is None and roles["local"]["decay"] == 1.0
        texts = one.generation.model_dump(exclude={"batch_size"})
        alike = (roles, one.local, texts, one.lora, one.numerics, one.data)
        seen.setdefault((cell.scenario, cell.dataset, cell.shots), set()).add(repr(alike))
    assert {len(kinds) for kinds in seen.values()} == {1}


def selections(method: dict[str, Any]) -> dict[str, Any] | None:
    """LaDa's options of selection, where the method has them."""
    own = method if method["name"] == "lada" else method.get("lada")
    return own and {key: own[key] for key in ("select", "cold", "filter", "reward")}


def every_arm(folder: Path) -> Matrix:
    """A matrix of all arms that the tier has."""
    names = list(read_yaml(CONFIGS / "arms" / "paper.yaml")["arms"])
    path = folder / "all.yaml"
    path.write_text(json.dumps({"scenarios": ["1"], "seeds": [0], "shots": [1], "arms": names}))
    return read_matrix(str(path), tier="paper")


def test_one_rule_selects_wherever_ladas_filter_does(tmp_path: Path) -> None:
    arms, chosen = every_arm(tmp_path), {}
    for cell in expand(arms):
        rule = selections(resolve_run(cell_layers(arms, cell, resolve_run)).method)
        if rule is not None:
            chosen[cell.arm] = rule
    plain = chosen["lada"]
    assert (plain["select"]["rule"], plain["select"]["threshold"]) == ("threshold", 0.5)
    assert (plain["reward"]["round_reward_weight"], plain["filter"]["exploration_weight"]) == (0.33, 0.33)
    changed = {name for name, rule in chosen.items() if rule != plain}
    assert changed == {"random", "oracle", "paired", "likelihood"}, "what these arms are about"
    assert {"fedmkt+lada", "wasp+lada", "without-weights"} <= chosen.keys() - changed
    assert len(chosen) == 10


def test_what_the_labs_models_needed_does_not_reach_the_real_ones() -> None:
    """configs/methods has WASP's decoding for the lab's writers, and a decay of private training."""
    (wasp,) = (one for cell, one in configs("table2").items() if at(cell) == ("wasp", "1", 0))
    decoding = ("first_examples", "temperature", "top_p", "max_new_tokens")
    plain = load_method({"name": "wasp"}, {}).options.model_dump()
    assert {key: wasp.method[key] for key in decoding} == {key: plain[key] for key in decoding}


def at(cell: Cell) -> tuple[str, str, int]:
    return cell.arm, cell.scenario, cell.shots


@pytest.mark.parametrize("arm", ["standalone", "lada"])
def test_submitting_a_cell_makes_the_run_that_was_listed(
    arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make matrix CLUSTER=…` hands `lada init` what `make submit` would."""
    (cell,) = (cell for cell in configs("table2") if at(cell) == (arm, "2", 1))
    parser = argparse.ArgumentParser()
    add_asked(parser)
    arguments = asked_arguments(parser.parse_args(run_arguments(found("table2"), cell)))
    assert lada.__main__.main(["plan", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == configs("table2")[cell].run_id


WITHOUT_TORCH = """
import sys

sys.modules["torch"] = sys.modules["safetensors"] = None
from lada.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_matrix_is_listed_without_torch(tmp_path: Path) -> None:
    """On a login node that has no image yet: which runs a table is made of."""
    command = ["matrix", "table2", "--tier", "paper", "--list", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "Without torch" in done.stderr, done.stderr
    assert len(lines) == 120 and lines[0] == "standalone, scenario 1, mathinstruct, 1-shot, seed 0"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_every_table_fits_the_example_cluster(name: str) -> None:
    assert 0 < gpu_hours(name) < 5000


@cache
def gpu_hours(name: str) -> float:
    """Of all runs of a matrix on a800.yaml, all seeds; refused where a model does not fit."""
    cluster = load_cluster("a800")
    each = [
        estimate(one, make_plan(one, load_method(one.method)), cluster).gpu_hours
        for one in configs(name).values()
    ]
    return sum(each) * len(found(name).seeds)


# -- make plan MATRIX=…


@pytest.fixture()
def asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are asked in this process."""

    def ask(cluster: Cluster, arguments: Sequence[str], files: Sequence[Path], *, runs: Path) -> str:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            assert lada.__main__.main(arguments) == 0
        return text.getvalue()

    monkeypatch.setattr(matrix_plan, "ask_lada", ask)


@pytest.mark.usefixtures("asked_here")
def test_the_plan_of_a_table_sums_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TABLE4, str(tmp_path / "none")]
    assert jobs.__main__.main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["runs"]) == 24 and values["total_gpu_hours"] == math.ceil(gpu_hours("table4"))
    assert jobs.__main__.main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"total: {values['total_gpu_hours']} GPU-hours"
    zero = next(line.split() for line in shown if line.split()[:3] == ["1", "mathinstruct", "0"])
    of_lada = [one["gpu_hours"] for one in values["runs"] if (one["arm"], one["shots"]) == ("lada", 0)]
    assert zero[-2] == f"{sum(of_lada):.0f}" and len(of_lada) == 3
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("asked_here")
def test_what_is_finished_is_not_planned_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "finished", property(lambda run: run.cell.arm == "lada"))
    assert jobs.__main__.main([*TABLE4, str(tmp_path), "--json"]) == 0
    arms = {one["arm"] for one in json.loads(capsys.readouterr().out)["runs"]}
    assert arms == {"sft", "socratic_cot", "rstar"}


def test_a_tier_without_figures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.__main__.main(["matrix-plan", "table4", "--tier", "lab", "--cluster", "a800"]) == 2
    assert "TIER=paper" in capsys.readouterr().err


def test_a_rehearsal_of_a_table_has_the_same_arms() -> None:
    rehearsed = read_matrix("table2", tier="rehearsal")
    assert (rehearsed.tier, rehearsed.size, len(expand(rehearsed))) == ("rehearsal", "tiny", 120)
    assert rehearsed.arms == found("table2").arms and rehearsed.settings == found("table2").settings
