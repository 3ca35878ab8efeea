"""What is said of the runs behind a table: read from the configurations that were collected with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada.layers import read_yaml
from lada.matrix.run_configs import flat
from lada.report.layout import Table
from lada.report.made import PAPER_THRESHOLD, selected
from lada.report.tables import build_table
from lada.selection.select import SelectOptions
from tests.report.made_up import row, with_configs, write_results

ROWS = [row("lada", 0.6, shots=1), row("lada", 0.6), row("fedkd", 0.5)]
SHARE = {"method.select.rule": "topk", "method.select.share": 0.25}


def matrix(**settings: Any) -> dict[str, Any]:
    lada = {"method": "lada", "label": "lada!", "tuned": "lada", "settings": settings}
    arms = {"fedkd": {"method": "fedkd"}, "lada": lada}
    return {"scenarios": ["1"], "shots": [1, 0], "seeds": [0], "settings": {"rounds": 4}, "arms": arms}


def built(folder: Path, *, collected: bool = True, **settings: Any) -> Table:
    paths = write_results(folder, "table2", ROWS, matrix=matrix(**settings))
    if collected:
        with_configs(paths, "table2")
    return build_table("table2", "lab", *paths)


def test_sizes_are_those_of_the_runs_beside_the_papers(tmp_path: Path) -> None:
    remarks = built(tmp_path, **SHARE).remarks
    sizes = read_yaml(Path(__file__).parents[2] / "configs" / "tiers" / "lab.yaml")["sizes"]["tiny"]["data"]
    assert sizes["num_test"] == 24, "of the size of the runs, not of the matrix's"
    assert (
        "Made with (the paper's sizes in brackets): 4 rounds [5], 32 training questions a client [1000], "
        "24 test questions a client [500], 48 public questions [1000]."
    ) in remarks
    assert (
        "LaDa selects a share of 0.25 by its filter's scores (rule topk), where the paper takes what scores "
        "above 0.5; α = 0.33, λ = 0.33."
    ) in remarks


def test_rates_are_named_for_arms_that_were_tuned(tmp_path: Path) -> None:
    rates = {"training.client.learning_rate": 2e-5, "training.client.decay": 0.5}
    (said,) = [one for one in built(tmp_path, **rates).remarks if "tuned" in one]
    assert said.endswith("(matrix lab-tuning): lada! 2e-05 and 0.5.")


def test_nothing_is_said_of_runs_whose_configurations_were_not_collected(tmp_path: Path) -> None:
    table = built(tmp_path, collected=False)
    assert not any("Made with" in one or "selects" in one for one in table.remarks)
    assert not any("runs here have" in note for note in table.footnotes)


def test_a_printed_figure_with_other_weights_stands_beside_those_of_the_runs(tmp_path: Path) -> None:
    key = "method.reward.round_reward_weight"
    (note,) = [one for one in built(tmp_path, **{key: 0.5}).footnotes if one.startswith("Table V prints")]
    assert "the figures printed here are Table VI's with both weights 0.66" in note
    assert note.endswith("; runs here have α = 0.5, λ = 0.33.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "what its filter scores above 0.5, as the paper's"),
        ({"threshold": 0.7}, "what its filter scores above 0.7"),
        ({"mode": "random"}, "by mode random in place of its filter"),
    ],
)
def test_a_selection_is_said_beside_the_papers(options: dict[str, Any], said: str) -> None:
    defaults = SelectOptions().model_dump()
    assert selected(flat({"method": {"select": {**defaults, **options}}})) == said
    assert (defaults["mode"], defaults["rule"], defaults["threshold"]) == (
        "filter",
        "threshold",
        PAPER_THRESHOLD,
    )
