"""Matrices: what they expand to, what is refused, and runs of one for real: run, resume, collect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lada.__main__ import main
from lada.errors import ConfigError
from lada.layers import CONFIGS, read_run
from lada.matrix.cells import Cell, cell_layers, expand, settings
from lada.matrix.definition import Matrix, read_matrices, read_matrix
from lada.matrix.local import find_runs
from lada.runs import resolve_run
from tests.smallest_models import SETTINGS

LISTS = ("lab-all",)
NAMES = sorted({path.stem for path in (CONFIGS / "matrices").glob("*.yaml")} - {*LISTS})
SMALL = dict(setting.split("=", 1) for setting in SETTINGS)


def matrix(**changes: object) -> Matrix:
    content = {"scenarios": ["1"], "seeds": [0], "arms": {"standalone": {"method": "standalone"}}}
    return Matrix.model_validate({**content, **changes}, strict=False)


# -- what it is


def test_arms_run_over_all_axes_seed_by_seed() -> None:
    found = expand(
        matrix(
            scenarios=["1", "3"],
            seeds=[0, 1],
            shots=[0, 1],
            arms={"a": {"method": "standalone"}, "b": {"method": "fedkd"}},
        )
    )
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in found] == [0] * 8 + [1] * 8
    assert found[0] == Cell("a", "1", "lab-math", 0, 0) and found[1].arm == "b"


def test_a_grid_multiplies_arms_and_reaches_the_run() -> None:
    rates = {"training.client.learning_rate": [1e-4, 3e-4], "training.client.decay": [0.5, 1.0]}
    found = matrix(grid=rates, settings={"training.client.decay": 0.1})
    cells = expand(found)
    assert [cell.at for cell in cells] == [
        "learning_rate=0.0001 decay=0.5",
        "learning_rate=0.0001 decay=1.0",
        "learning_rate=0.0003 decay=0.5",
        "learning_rate=0.0003 decay=1.0",
    ]
    assert "training.client.decay=1.0" in settings(found, cells[1], resolve_run)


def test_keys_of_a_grid_that_end_alike_are_told_apart() -> None:
    rates = {f"training.{role}.learning_rate": [1e-4] for role in ("client", "server")}
    (cell,) = expand(matrix(grid={**rates, "rounds": [2]}))
    assert cell.at == "training.client.learning_rate=0.0001 training.server.learning_rate=0.0001 rounds=2"


def test_an_arm_that_replays_comes_last_in_its_seed_and_names_the_run_of_its_own_cell(tmp_path: Path) -> None:
    found = matrix(
        seeds=[0, 1],
        arms={
            "random": {
                "method": "lada",
                "settings": {"method.select.mode": "random"},
                "replays": {"method.select.replay": "lada"},
            },
            "lada": {"method": "lada"},
        },
    )
    runs = find_runs(found, tmp_path)
    assert [(run.cell.arm, run.cell.seed) for run in runs] == [
        ("lada", 0),
        ("random", 0),
        ("lada", 1),
        ("random", 1),
    ]
    for source, replaying in ((runs[0], runs[1]), (runs[2], runs[3])):
        wanted = settings(found, replaying.cell, resolve_run)
        assert f"method.select.replay={source.folder.name}" in wanted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contrasts": [["a", "standalone"]]}, "contrasts name 'a'; arms here: standalone"),
        (
            {"arms": {"a": {"method": "sft", "replays": {"method.replay": "b"}}}},
            "arm a replays 'b'; arms here: a",
        ),
        ({"arms": {"Two words": {"method": "sft"}}}, "pattern"),
        ({"arms": {}}, "at least 1"),
        ({"seeds": []}, "at least 1"),
        ({"federations": {"duo": ["Qwen/Qwen3-8B"]}}, "at least 2"),
    ],
)
def test_what_makes_no_matrix_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        matrix(**changes)


def test_a_matrix_may_name_the_models_of_its_scenarios(tmp_path: Path) -> None:
    models = ["Qwen/Qwen3-8B", "google/gemma-2-2b", "Qwen/Qwen3-4B"]
    found = matrix(scenarios=["mine", "1"], federations={"mine": models})
    mine, first = (resolve_run(cell_layers(found, cell, resolve_run)) for cell in expand(found))
    assert [(party.name, party.model) for party in mine.parties] == [
        ("server", models[0]),
        ("client-1", models[1]),
        ("client-2", models[2]),
    ]
    assert mine.scenario == "mine" and mine.run_id.startswith("mine-standalone-lab-math")
    assert first.scenario == "1" and len(first.parties) == 4


# -- arms of a tier


ARMS_FILE = """
size: tiny
datasets: {math: lab-math, cot: lab-cot}
settings: {rounds: 1}
sizes:
  quick: {data.num_test: 50}
arms:
  standalone: {method: standalone}
  lada: {method: lada, label: LaDa, settings: {method.select.share: 0.5}}
"""


def tier_of(tmp_path: Path, **matrix: object) -> Path:
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "arms" / "lab.yaml").write_text(ARMS_FILE)
    (configs / "matrices" / "mine.yaml").write_text(json.dumps({"scenarios": ["1"], **matrix}))
    return configs


def test_a_matrix_that_lists_arms_takes_them_from_its_tier(tmp_path: Path) -> None:
    configs = tier_of(tmp_path, arms=["lada"], datasets=["cot"], settings={"rounds": 2})
    found = read_matrix("mine", configs)
    assert (found.tier, found.size, found.datasets) == ("lab", "tiny", ("lab-cot",))
    assert found.label("lada") == "LaDa" and list(found.arms) == ["lada"]
    assert found.settings == {"rounds": 2}
    larger = read_matrix("mine", configs, tier="lab", size="quick")
    assert larger.size == "quick" and larger.settings == {"rounds": 2, "data.num_test": 50}


def test_what_a_tier_does_not_have_is_named_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mine.yaml names the arm 'lata'; .*lab.yaml has: standalone, lada"
    ):
        read_matrix("mine", tier_of(tmp_path / "a", arms=["lata"]))
    configs = tier_of(tmp_path / "b", arms=["lada"], datasets=["chess"])
    with pytest.raises(ConfigError, match=r"names the dataset 'chess'; .* has: math, cot"):
        read_matrix("mine", configs)
    with pytest.raises(ConfigError, match=r"no configs/arms/moon.yaml.* Legal: lab"):
        read_matrix("mine", configs, tier="moon")
    with pytest.raises(ConfigError, match=r"lab-study.yaml is of tier lab, not paper"):
        read_matrix("lab-study", tier="paper")


def test_the_same_arm_in_two_matrices_is_the_same_run(tmp_path: Path) -> None:
    study, table = (
        {run.folder.name for run in find_runs(read_matrix(name), tmp_path)}
        for name in ("lab-study", "table2")
    )
    assert len(study & table) == 2 * 3 * 5, "scenarios 1 and 3, three seeds, five arms, without an example"


def test_mistakes_name_the_file_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scenarios: ['1']\narm: {}\narms: {a: {method: standalone}}\n")
    with pytest.raises(ConfigError, match=rf"{path}: unknown key 'arm'; did you mean 'arms'"):
        read_matrix(str(path))
    with pytest.raises(ConfigError, match=r"no configs/matrices/lab-studi.yaml; did you mean 'lab-study'"):
        read_matrix("lab-studi")
    with pytest.raises(ConfigError, match=r"unknown key 'method\.colour'"):
        find_runs(matrix(settings={"method.colour": "red"}), tmp_path)
    with pytest.raises(ConfigError, match=r"'method.select'.*dotted keys with plain values"):
        find_runs(matrix(settings={"method.select": {"share": 0.5}}), tmp_path)


def test_an_arm_that_opens_the_answers_says_so_in_tables(tmp_path: Path) -> None:
    oracle = {"method": "lada", "settings": {"method.select.mode": "oracle"}}
    with pytest.raises(ConfigError, match="arm best opens the sealed answers: its label must say oracle"):
        find_runs(matrix(arms={"best": oracle}), tmp_path)
    assert find_runs(matrix(arms={"best": {**oracle, "label": "oracle choice"}}), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_additions_to_the_paper_are_marked_in_shipped_matrices(name: str) -> None:
    found = read_matrix(name)
    for arm, one in found.arms.items():
        added = {
            key
            for key, value in one.settings.items()
            if key.endswith(("nll_weight", "sender_confidence", "select.fresh")) or value == "likelihood"
        }
        assert bool(added) == ("[addition]" in found.label(arm)), f"{arm}: {added}"


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_matrix_resolves_to_runs_of_its_own(name: str, tmp_path: Path) -> None:
    found = read_matrix(name)
    folders = [run.folder for run in find_runs(found, tmp_path)]
    assert len(folders) == len(set(folders)) == len(expand(found)) > 1


def test_a_matrix_may_list_others_and_a_run_of_two_of_them_is_planned_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("matrices: [table2, table5]")
    found = read_matrices(str(path))
    assert found == {name: read_matrix(name) for name in ("table2", "table5")}
    of_each = {name: [run.folder.name for run in find_runs(one, tmp_path)] for name, one in found.items()}
    assert main(["matrix", str(path), "--json", "--runs", str(tmp_path)]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["matrix"], one["run_id"]) for one in listed] == [
        (name, run) for name, runs in of_each.items() for run in runs
    ]
    assert main(["matrix", str(path), "--plans", "--runs", str(tmp_path)]) == 0
    planned = [one["run_id"] for one in json.loads(capsys.readouterr().out)]
    assert len(planned) == len(set(planned)) and set(planned) == {*of_each["table2"], *of_each["table5"]}
    assert read_matrices("table2") == {"table2": read_matrix("table2")}
    path.write_text("matrices: []")
    with pytest.raises(ConfigError, match=rf"{path}: key 'matrices'.*at least 1"):
        read_matrices(str(path))
    path.write_text("matrices: [table2]\nseeds: [0]")
    with pytest.raises(ConfigError, match=r"unknown key 'seeds'; legal keys here: matrices"):
        read_matrices(str(path))


def test_the_lab_tiers_list_holds_every_matrix() -> None:
    assert sorted(read_matrices("lab-all")) == NAMES


# -- runs


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = tmp_path / "mine.yaml", tmp_path / "runs"
    found = matrix(size="tiny", settings=SMALL, seeds=[0, 1])
    path.write_text(found.model_dump_json())
    broken, whole = find_runs(found, runs)
    runs.mkdir()
    broken.folder.write_text("in the way")
    assert main(["matrix", str(path), "--runs", str(runs), "--list"]) == 0
    assert capsys.readouterr().out.count("to do") == 2
    assert main(["matrix", str(path), "--runs", str(runs)]) == 1
    shown = capsys.readouterr()
    assert "1/2 FAILED" in shown.out and "2/2 done" in shown.out
    assert f"{broken.folder}.log" in shown.err
    assert whole.finished and read_run(whole.folder).seed == 1
    assert broken.folder.read_text() == "in the way"
