"""The study's tables from hand-made numbers with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.config import layers, resolve
from lada.errors import DataError
from lada.report.study import Row, accuracy_table, arm_name, diagnostics_table, read_csv, write_csv
from lada.runs import resolve_run


def row(
    arm: str, metric: str, value: float, *, round: int = 0, seed: int = 0, party: str = "client-1"
) -> Row:
    return Row("1", "lab-math", 0, "answer_only", arm, party, "org/model-x", round, metric, seed, value)


ROWS = [
    row("standalone", "accuracy_base", 0.40),
    row("standalone", "accuracy_base_se", 0.03),
    row("standalone", "accuracy", 0.30),
    row("standalone", "accuracy_se", 0.03),
    row("standalone", "accuracy_base", 0.50, seed=1),
    row("standalone", "accuracy_base_se", 0.04, seed=1),
    row("standalone", "accuracy", 0.20, seed=1),
    row("standalone", "accuracy_se", 0.04, seed=1),
    row("lada (paper)", "accuracy", 0.10, round=0),
    row("lada (paper)", "accuracy", 0.60, round=2),
    row("lada (paper)", "accuracy_se", 0.05, round=2),
    row("lada (paper)", "filter/server/auc_reward", 0.9, round=1),
    row("lada (paper)", "filter/server/auc_reward", 0.4, round=2),
]


def test_accuracies_are_means_over_seeds_of_the_last_round() -> None:
    table = accuracy_table(ROWS)
    assert "| - | base model (as it came) | 45.0 ± 2.5 | 2 |" in table
    assert "| answer_only | standalone | 25.0 ± 2.5 | 2 |" in table
    assert "| answer_only | lada (paper) | 60.0 ± 5.0 | 1 |" in table
    assert "client-1 model-x" in table


def test_a_missing_party_is_shown_as_missing_not_as_zero() -> None:
    table = accuracy_table([*ROWS, row("lada (paper)", "accuracy", 0.5, party="client-2")])
    assert "| answer_only | standalone | 25.0 ± 2.5 | - | 2 |" in table


def test_diagnostics_leave_out_round_one_where_no_filter_chose() -> None:
    assert "| answer_only | lada (paper) | - | - | - | 0.400 | - | - | - |" in diagnostics_table(ROWS)


def test_two_runs_in_one_cell_are_refused() -> None:
    with pytest.raises(DataError, match="two runs of standalone, seed 0"):
        accuracy_table([*ROWS, row("standalone", "accuracy", 0.9)])


def test_the_csv_reads_back(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "study.csv")
    assert read_csv(tmp_path / "study.csv") == ROWS


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ((), "lada (paper)"),
        (("method.reward.profile=likelihood",), "lada (likelihood) [addition]"),
        (("method.nll_weight=3.0",), "lada (paper) + nll 3 [addition]"),
        (("method.use_filter=false",), "lada (paper) without filter (all)"),
        (("method.reasoning_distillation=false",), "lada (paper) without reasoning distillation"),
        (("method.server_weights=none",), "lada (paper) without sample weights"),
    ],
)
def test_arms_are_named_by_what_differs_and_additions_are_marked(
    settings: tuple[str, ...], name: str
) -> None:
    found = layers(scenario="1", method="lada", dataset="lab-math", size="tiny", settings=settings)
    assert arm_name(resolve_run(found)) == name
    assert resolve(found)[0].method["name"] == "lada"
