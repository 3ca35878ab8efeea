"""The study's tables from hand-made numbers with known answers, and that what it ran with was chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lada.errors import DataError
from lada.layers import CONFIGS
from lada.matrix.collect import paired
from lada.matrix.definition import Matrix, read_matrix
from lada.matrix.rows import Row, bytes_by_direction, read_rows, write_rows
from lada.report.study import (
    accuracy_tables,
    best_point,
    contrast_table,
    diagnostics_table,
    grid_table,
)

RESULTS = CONFIGS.parent / "results" / "lab"
MATRIX = Matrix.model_validate(
    {
        "scenarios": ("1",),
        "arms": {
            "standalone": {"method": "standalone"},
            "lada": {"method": "lada", "label": "LaDa"},
            "wasp": {"method": "wasp"},
        },
        "contrasts": (("lada", "standalone"),),
    }
)


def row(
    arm: str,
    metric: str,
    value: float,
    *,
    round: int = 0,
    seed: int = 0,
    party: str = "client-1",
    at: str = "",
    scenario: str = "1",
) -> Row:
    place = ("lab", scenario, "lab-math", 0)
    return Row(*place, arm, at, "method", seed, party, "org/model-x", round, metric, value)


ROWS = [
    row("standalone", "accuracy_base", 0.40),
    row("standalone", "accuracy_base_se", 0.03),
    row("standalone", "accuracy", 0.30),
    row("standalone", "accuracy_se", 0.03),
    row("standalone", "accuracy_base", 0.50, seed=1),
    row("standalone", "accuracy_base_se", 0.04, seed=1),
    row("standalone", "accuracy", 0.20, seed=1),
    row("standalone", "accuracy_se", 0.04, seed=1),
    row("standalone", "accuracy", 0.8, party="server"),
    row("standalone", "accuracy_se", 0.02, party="server"),
    row("lada", "accuracy", 0.10, round=0),
    row("lada", "accuracy_se", 0.05, round=0),
    row("lada", "accuracy", 0.60, round=2),
    row("lada", "accuracy_se", 0.05, round=2),
    row("lada", "paired/standalone", 0.30, round=2),
    row("lada", "paired/standalone_se", 0.04, round=2),
    row("lada", "filter/server/auc_reward", 0.9, round=1),
    row("lada", "filter/server/auc_reward", 0.4, round=2),
    row("lada", "bytes_sent/learn/server/ids", 1500, round=1),
    row("lada", "bytes_sent/learn/server/adapters", 9e9, round=1),
    row("lada", "bytes_sent/respond/client-1/responses", 7000, round=1, party="server"),
]


def test_accuracies_are_means_over_seeds_of_the_last_round_with_bytes_beside() -> None:
    table = accuracy_tables(MATRIX, ROWS)
    assert table.startswith("**Scenario 1, lab-math, zero-shot**")
    assert "| base model (as it came) | 45.0 ± 2.5 | 45.0 ± 2.5 | - | 0 | 0 | 2 |" in table
    assert "| standalone | 25.0 ± 2.5 | 25.0 ± 2.5 | 80.0 ± 2.0 | 0 | 0 | 2 |" in table
    assert "| LaDa | 60.0 ± 5.0 | 60.0 ± 5.0 | - | 2 | 7 | 1 |" in table
    assert "wasp" not in table, "an arm without runs is missing, not zero"


def test_a_missing_party_is_shown_as_missing_not_as_zero() -> None:
    more = [
        row("lada", "accuracy", 0.5, round=2, party="client-2"),
        row("lada", "accuracy_se", 0.05, round=2, party="client-2"),
    ]
    table = accuracy_tables(MATRIX, [*ROWS, *more])
    assert "| standalone | 25.0 ± 2.5 | - | 25.0 ± 2.5 | 80.0 ± 2.0 | 0 | 0 | 2 |" in table
    assert "| LaDa | 60.0 ± 5.0 | 50.0 ± 5.0 | 55.0 ± 3.5 | - |" in table


def test_contrasts_are_signed_points_by_scenario() -> None:
    more = [
        row("lada", "paired/standalone", -0.1, round=2, scenario="3", party="server"),
        row("lada", "paired/standalone_se", 0.02, round=2, scenario="3", party="server"),
    ]
    table = contrast_table(MATRIX, [*ROWS, *more])
    assert "| arm minus other | scenario 1: clients | scenario 1: server | scenario 3: clients |" in table
    assert "| LaDa − standalone | +30.0 ± 4.0 | - | - | -10.0 ± 2.0 |" in table


def test_diagnostics_leave_out_round_one_where_no_filter_chose() -> None:
    assert "| LaDa | - | - | - | 0.400 | - | - |" in diagnostics_table(MATRIX, ROWS)


def test_two_runs_in_one_cell_are_refused() -> None:
    with pytest.raises(DataError, match="two runs of standalone, seed 0"):
        accuracy_tables(MATRIX, [*ROWS, row("standalone", "accuracy", 0.9)])


def test_the_csv_reads_back(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "study.csv")
    assert read_rows(tmp_path / "study.csv") == ROWS
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"columns \['a', 'b'\]"):
        read_rows(tmp_path / "other.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.csv")


def test_bytes_count_a_message_to_all_for_each_client_and_rewards_and_weights_apart() -> None:
    rows = [
        row("lada", "bytes_sent/respond/all/responses", 100, party="server"),
        row("lada", "bytes_sent/learn/all/adapters", 5, party="server"),
        row("lada", "bytes_sent/learn/server/rewards", 1000),
        row("lada", "bytes_sent/learn/client-2/ids", 10, party="server"),
        row("lada", "bytes_sent/learn/server/ids", 7),
        row("lada", "accuracy", 1.0),
    ]
    found = bytes_by_direction(rows, clients=3)
    assert found == {"up": 7, "down": 310, "aside": 1015}


def test_a_paired_difference_has_the_error_of_its_questions() -> None:
    first = {"a": True, "b": True, "c": False, "d": True}
    second = {"a": True, "b": False, "c": False, "d": False}
    assert paired(first, second) == pytest.approx((0.5, 0.2886751))  # gaps 0, 1, 0, 1
    assert paired(second, first)[0] == -0.5
    with pytest.raises(DataError, match="different test questions"):
        paired(first, {"a": True})


GRID = [
    row("lada", "accuracy", 0.5, at="lr=1"),
    row("lada", "accuracy", 0.3, at="lr=1", party="client-2"),
    row("lada", "accuracy", 0.4, at="lr=2"),
    row("lada", "accuracy", 0.5, at="lr=2", party="client-2"),
    row("lada", "accuracy", 1.0, at="lr=1", party="server"),
]


def test_the_best_point_is_that_of_the_clients_mean_and_ties_go_to_the_first() -> None:
    assert best_point(GRID, "lada") == "lr=2"
    assert "| LaDa | 40.0 | **45.0** |" in grid_table(MATRIX, GRID)
    even = [dataclasses.replace(one, value=0.4) for one in GRID]
    assert best_point(even, "lada") == "lr=1"
    assert best_point(GRID, "wasp") is None


def test_the_study_runs_with_what_was_chosen_on_the_tuning_seed() -> None:
    tuned, study = read_matrix("lab-tuning"), read_matrix("lab-study")
    assert not set(tuned.seeds) & set(study.seeds), "nothing is tuned on questions of a table"
    rows = read_rows(RESULTS / "lab-tuning.csv")
    for name, arm in study.arms.items():
        if arm.tuned is None:
            continue
        chosen = dict(part.split("=") for part in (best_point(rows, arm.tuned) or "").split())
        for key in tuned.grid:
            given = arm.settings[key]
            assert float(chosen[key.rpartition(".")[2]]) == given, f"{name}: {key}"
    local = ("standalone", "standalone_matched")  # their rate was chosen for all arms at once
    trained = {name for name, arm in study.arms.items() if arm.method not in local}
    assert all(study.arms[name].tuned for name in trained)
