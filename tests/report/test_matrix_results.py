"""Collected results as tables and figures read them: what is refused, and which value of a run counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lada.errors import ConfigError, DataError
from lada.matrix.rows import Row
from lada.report.results import Results, best_round, final, load
from tests.report.made_up import row, write_results

MATRIX = {
    "scenarios": ["1"],
    "seeds": [0, 1],
    "arms": {"standalone": {"method": "standalone"}, "lada": {"method": "lada"}},
}
ROWS = [row(arm, value, seed=seed) for arm, value in (("lada", 0.5), ("standalone", 0.4)) for seed in (0, 1)]


def loaded(folder: Path, rows: list[Row]) -> Results:
    results, configs = write_results(folder, "mine", rows, matrix=MATRIX)
    return load("mine", "lab", results, configs)


def edited(folder: Path, ending: str, change: Callable[[str], str]) -> tuple[Path, Path]:
    """Results with one of the two files changed."""
    results, configs = write_results(folder, "mine", ROWS, matrix=MATRIX)
    path = results / "lab" / f"mine{ending}.csv"
    path.write_text(change(path.read_text()))
    return results, configs


def test_rows_and_runs_come_with_their_types(tmp_path: Path) -> None:
    found = loaded(tmp_path, ROWS)
    assert len(found.rows) == 4 and len(found.runs) == 4
    assert found.rows["value"].sum() == pytest.approx(1.8)
    assert set(found.runs["seed"]) == {0, 1} and set(found.rows["shots"]) == {0}
    assert found.matrix.label("lada") == "lada" and (found.name, found.tier) == ("mine", "lab")


def test_two_runs_in_one_cell_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"two runs claim one cell: arm lada, scenario 1, .*seed 1, party client-1"
    ):
        loaded(tmp_path, [*ROWS, row("lada", 0.7, seed=1)])
    results, configs = edited(tmp_path, "-runs", lambda text: text + text.splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"mine-runs.csv: two runs claim one cell: arm lada"):
        load("mine", "lab", results, configs)


@pytest.mark.parametrize(
    ("ending", "change", "said"),
    [
        ("", lambda text: text.replace("tier,", "level,", 1), "columns .*'level'.*expected"),
        ("", lambda text: text[: text.rindex(",")] + "\n", "line 5: 12 fields, expected 13"),
        ("", lambda text: text.replace(",0.4\n", ",forty\n", 1), "line 4: value 'forty' is no number"),
        ("", lambda text: text.replace(",0.4\n", ",40\n", 1), "line 4: accuracy 40 is no fraction"),
        ("", lambda text: text.replace("lab,", "paper,", 1), "line 2: tier paper among results of tier lab"),
        (
            "",
            lambda text: text.replace("lab,1,", "lab,2,"),
            "no run in mine-runs.csv for arm lada, scenario 2",
        ),
        ("-runs", lambda text: text.replace("run_id", "run", 1), r"no columns \['run_id'\]"),
        ("-runs", lambda text: text[: text.index("\n") + 1], "no run in mine-runs.csv for arm lada"),
        ("-runs", lambda text: text.replace(",tiny,", ",quick,", 1), "runs of sizes quick and tiny"),
        ("-runs", lambda text: "", "no columns"),
    ],
)
def test_files_that_are_not_whole_are_refused(
    tmp_path: Path, ending: str, change: Callable[[str], str], said: str
) -> None:
    results, configs = edited(tmp_path, ending, change)
    with pytest.raises(DataError, match=said):
        load("mine", "lab", results, configs)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"tier,scenario\nlab,\xff\xfe\n", r"mine.csv, line 2: no text: byte 18 is not UTF-8"),
        (b"tier,scenario\n" + b"x" * 200_000 + b",1\n", r"mine.csv, line 2: no CSV: field larger than"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    results, configs = write_results(tmp_path, "mine", ROWS, matrix=MATRIX)
    (results / "lab" / "mine.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load("mine", "lab", results, configs)


@pytest.mark.parametrize("ending", ["", "-runs"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    results, configs = write_results(tmp_path, "mine", ROWS, matrix=MATRIX)
    (results / "lab" / f"mine{ending}.csv").unlink()
    with pytest.raises(DataError, match=f"mine{ending}.csv: cannot be read: No such file"):
        load("mine", "lab", results, configs)


def test_a_matrix_of_another_tier_is_refused(tmp_path: Path) -> None:
    results, configs = write_results(tmp_path, "mine", ROWS, matrix={**MATRIX, "tier": "lab"})
    with pytest.raises(ConfigError, match="is of tier lab, not paper"):
        load("mine", "paper", results, configs)


def test_rows_that_the_matrix_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the matrix has no arm wasp, scenario 1, dataset lab-math, shots 0"):
        loaded(tmp_path, [*ROWS, row("wasp", 0.5)])


def test_seeds_that_ran_for_different_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different length in one cell: seed 0 round 1, seed 1 round 2"):
        loaded(tmp_path, [row("lada", 0.5), row("lada", 0.5, seed=1), row("lada", 0.6, seed=1, round=2)])


def test_the_last_round_counts_and_the_best_is_apart(tmp_path: Path) -> None:
    values = [0.9, 0.5, 0.7, 0.6]  # round 0 is before distillation
    rows = [row("lada", value, round=number) for number, value in enumerate(values)]
    found = loaded(
        tmp_path, [*rows, row("standalone", 0.4, round=0), row("lada", 0.1, "unparsed_rate", round=3)]
    )
    assert list(zip(final(found.rows)["arm"], final(found.rows)["value"], strict=True)) == [
        ("lada", 0.6),
        ("standalone", 0.4),
    ]
    best = best_round(found.rows)
    assert list(zip(best["value"], best["round"], strict=True)) == [(0.7, 2), (0.4, 0)]
    assert list(final(found.rows, "unparsed_rate")["value"]) == [0.1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_last_round_that_is_no_number_is_missing_and_no_earlier_one_stands_in(
    tmp_path: Path, value: float
) -> None:
    found = loaded(
        tmp_path, [row("lada", 0.5, round=1), row("lada", value, round=2), row("lada", 0.5, seed=1, round=2)]
    )
    assert list(final(found.rows)["seed"]) == [1]
    assert found.rows["value"].isna().sum() == 1
