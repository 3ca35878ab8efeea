"""Where a number is from: every run, seed, line and difference, and what a cell can be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.errors import ConfigError, DataError
from lada.report.__main__ import main
from lada.report.explain import explain
from tests.report.made_up import counts, row, write_results

CELL = "table2/scenario 1/zero-shot/client-1/lada"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of LaDa and FedKD on two seeds, and LaDa's run folders."""
    arms = {name: {"method": name, "label": f"{name} (= it)"} for name in ("standalone", "fedkd", "lada")}
    rows = []
    for seed, right in enumerate((0.6, 0.7)):
        rows += [row("fedkd", 0.5, seed=seed), row("lada", right, seed=seed)]
        rows.append(row("lada", 0.9, seed=seed, round=0))
        rows.append(row("lada", 0.01 * (1 + seed), "unparsed_rate", seed=seed))
        rows.append(row("lada", 0.0, "truncated_rate", seed=seed))
        rows += counts("lada", "fedkd", round(100 * right) - 40, 10, 100, seed=seed)
    matrix = {"scenarios": ["1"], "shots": [1, 0], "seeds": [0, 1], "arms": arms}
    write_results(tmp_path, "table2", rows, matrix=matrix)
    for seed in (0, 1):
        run = tmp_path / "runs" / f"1-lada-lab-math-0shot-s{seed}"
        run.mkdir(parents=True)
        (run / "run.yaml").write_text(
            f"seed: {seed}\nmethod: {{name: lada, beta: 0.{1 + seed}}}\nrounds: 2\n"
        )
    return tmp_path


def said(folder: Path, cell: str) -> str:
    return explain(cell, "lab", results=folder / "results", configs=folder / "configs", runs=folder / "runs")


def test_a_mean_is_traced_to_runs_lines_versions_and_options(folder: Path) -> None:
    text = said(folder, CELL)
    assert (
        "measured: 65.0 ± 7.1 per cent, mean of 2 seeds after the last round; best of those beside it" in text
    )
    assert "the paper prints: 27.2\nmeasured minus printed: +37.8" in text
    assert "seed 0: 60.0000\nseed 1: 70.0000" in text
    for seed, right in ((0, "0.6"), (1, "0.7")):
        assert f"run 1-lada-lab-math-0shot-s{seed} (lada, seed {seed})\n  commit c0ffee, code abc" in text
        (line,) = [one for one in text.splitlines() if f"round 1, accuracy {right}" in one]
        number = int(line.split("line ")[1].split(":")[0])
        file = (folder / "results" / "lab" / "table2.csv").read_text().splitlines()
        assert file[number - 1].endswith(f",{seed},client-1,org/model-1b,1,accuracy,{right}")
    assert "seed: 0 (lada s0), 1 (lada s1)" in text and "method.beta: 0.1 (lada s0), 0.2 (lada s1)" in text
    assert "rounds" not in text.partition("run.yaml, where the runs differ:")[2], (
        "what is alike is not listed"
    )
    assert "made with, where the runs differ:\n  nowhere" in text


def test_a_gain_is_traced_to_both_arms_and_its_test(folder: Path) -> None:
    text = said(folder, "table2/scenario 1/zero-shot/client-1/improvement")
    assert "measured: +15.0 ± 7.1 points" in text
    assert "difference: lada minus fedkd, the best of the others" in text
    assert "right in lada alone: 50, in fedkd alone: 20\nquestions of all seeds: 200" in text
    assert text.count("\nrun 1-lada") == 2 and text.count("\nrun 1-fedkd") == 2
    assert "run.yaml: 2 of 4 are in" in text and text.count("(not there)") == 2


def test_a_missing_number_says_so(folder: Path) -> None:
    text = said(folder, "table2/scenario 1/one-shot/client-1/standalone")
    assert "measured: nothing; no finished run of seeds 0, 1" in text and "the paper prints: 22.0" in text


def test_a_table_says_the_rates_of_a_cell_and_a_table_of_rates_is_explained(folder: Path) -> None:
    assert "answers without a letter: 1.5 per cent\nanswers cut off at the token limit: 0.0 per cent" in said(
        folder, CELL
    )
    text = said(folder, CELL.replace("table2", "table2-unparsed"))
    assert "answers without a letter" in text.splitlines()[0] and "\ntable2-unparsed/lab-math/" in text
    assert "measured: 1.5 ± 0.7 per cent, mean of 2 seeds" in text and "seed 1: 2.0000" in text
    file = (folder / "results" / "lab" / "table2.csv").read_text().splitlines()
    (line,) = [one for one in text.splitlines() if "unparsed_rate 0.02" in one]
    assert line.strip().startswith("table2.csv line ")
    assert file[int(line.split("line ")[1].split(":")[0]) - 1].endswith("unparsed_rate,0.02")
    assert "measured: 0.0" in said(folder, CELL.replace("table2", "table2-truncated"))
    with pytest.raises(ConfigError, match="method: 'improvement' is none"):
        said(folder, "table2-unparsed/scenario 1/zero-shot/client-1/improvement")


def test_a_part_may_be_called_as_the_tables_show_it(folder: Path) -> None:
    assert said(folder, "table2/Scenario 1/Zero-shot/client-1/lada (= it)") == said(folder, CELL)


def test_one_seed_is_no_mean_and_one_cell_no_best(tmp_path: Path) -> None:
    arms = {name: {"method": name} for name in ("fedkd", "lada")}
    matrix = {"scenarios": ["1"], "seeds": [0], "arms": arms}
    write_results(tmp_path, "table2", [row("lada", 0.6)], matrix=matrix)
    text = said(tmp_path, CELL)
    assert "measured: 60.0 per cent, one seed after the last round\n" in text


def test_a_point_of_a_grid_may_be_called_by_the_papers_letters(tmp_path: Path) -> None:
    grid = {"method.reward.round_reward_weight": [0.33, 0.66]}
    rows = [row("lada", 0.6, at=f"round_reward_weight={value}") for value in (0.33, 0.66)]
    matrix = {"scenarios": ["1"], "seeds": [0], "arms": {"lada": {"method": "lada"}}, "grid": grid}
    write_results(tmp_path, "table6", rows, matrix=matrix)
    assert "table6/lab-math/scenario 1/zero-shot/client-1/lada/round_reward_weight=0.66" in said(
        tmp_path, "table6/zero-shot/client-1/α = 0.66"
    )


def test_a_part_with_one_value_may_be_left_out_or_given(folder: Path) -> None:
    assert said(folder, "table2/zero-shot/client-1/lada") == said(folder, CELL)
    assert said(folder, CELL.replace("table2/", "table2/lab-math/")) == said(folder, CELL)


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("table9/x", "no table 'table9'; legal: table1, table2, table3, table4, table5, table6"),
        ("table2/scenario 5/zero-shot/client-1/lada", "scenario: 'scenario 5' is none; legal: scenario 1$"),
        (
            "table2/scenario 1/two-shot/client-1/lada",
            "setting: 'two-shot' is none; legal: one-shot, zero-shot",
        ),
        ("table2/scenario 1/zero-shot/client-9/x", "party: 'client-9' is none; legal: client-1, client-2"),
        (
            "table2/scenario 1/zero-shot/server/wasp",
            "method: 'wasp' is none; legal: standalone, fedkd, lada, improvement",
        ),
        ("table2/scenario 1/zero-shot/server", "method: a part is missing; legal: standalone"),
        ("table2/scenario 1//server/lada", "setting: '' is none"),
        (f"{CELL}/more", "'more' is one part too many"),
        ("table1/scenario 7/server", "scenario 'scenario 7' is none; legal: scenario 1, scenario 2"),
        (
            "table1/scenario 1/client-4",
            "column 'client-4' is none; legal: client-1, client-2, client-3, server",
        ),
    ],
)
def test_a_wrong_cell_says_what_its_first_wrong_part_can_be(folder: Path, cell: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        said(folder, cell)


def test_a_table_without_results_is_an_error(folder: Path) -> None:
    with pytest.raises((ConfigError, DataError)):
        said(folder, CELL.replace("table2", "table3"))


def test_table_1_is_from_the_scenarios(folder: Path) -> None:
    text = said(folder, "table1/scenario 1/client-3")
    assert text.startswith("Meta-Llama-3-8B (the paper prints LLaDa-3-8B)") and "scenarios/1.yaml" in text


def test_the_command_writes_and_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the project's own matrices, of which nothing is collected here."""
    assert main(["tables", "--tier", "lab", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 tables, 4 files" in shown and "table2 is missing: table2.csv is not there" in shown
    assert (tmp_path / "lab" / "tables" / "table1.md").is_file()
    assert main(["explain", "--results", str(tmp_path), "table1/scenario 1/server"]) == 0
    assert "Qwen3-32B" in capsys.readouterr().out
    assert main(["explain", "--results", str(tmp_path), CELL]) == 3
    assert "table2.csv: cannot be read" in capsys.readouterr().err
    assert main(["explain", "--results", str(tmp_path), "table7"]) == 2
