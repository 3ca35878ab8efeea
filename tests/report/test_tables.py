"""Tables from made-up results with known answers: means, marks, gains, tests, and all that can be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lada.matrix.rows import Row
from lada.report.layout import Entry
from lada.report.tables import build_all, table1
from tests.report.made_up import row, write_results
from tests.report.made_up_table2 import ARMS, MATRIX, built, cells, entry, notes


def test_means_deviations_and_the_papers_figures(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"standalone": [0.30, 0.40], "fedkd": [0.50, 0.52], "lada": [0.6, 0.66]}))
    found = entry(table, "lada")
    assert found.mean == pytest.approx(63) and found.std == pytest.approx(3 * math.sqrt(2))
    assert found.seeds == (0, 1) and found.values == pytest.approx((60, 66))
    assert found.paper == 27.2 and found.difference == pytest.approx(63 - 27.2)
    assert entry(table, "fedkd").paper == 24.0 and entry(table, "oracle").paper is None
    gain = entry(table, "improvement")
    assert gain.mean == pytest.approx(12) and gain.paper == 0.8 and gain.signed
    assert (
        table.title
        == "Table II: LaDa and the federated baselines, accuracy in per cent (lab-math, lab tier, size tiny)"
    )


def test_best_and_second_are_marked_and_an_arm_that_reads_answers_never(tmp_path: Path) -> None:
    values = {"standalone": [0.3, 0.3], "fedkd": [0.5, 0.5], "lada": [0.6, 0.6], "oracle": [0.9, 0.9]}
    table = built(tmp_path, cells(values))
    marks = {arm: entry(table, arm).mark for arm in ARMS}
    assert marks == {"standalone": None, "fedkd": "second", "lada": "best", "oracle": None}
    assert entry(table, "improvement").mean == pytest.approx(10), "the oracle is no baseline"
    assert entry(table, "improvement").mark is None


def test_all_of_a_tie_are_marked_and_two_best_leave_no_second(tmp_path: Path) -> None:
    # (0.1 + 0.2) / 2 and 0.15 differ in the last bits of a double
    table = built(tmp_path, cells({"standalone": [0.1, 0.2], "fedkd": [0.15, 0.15], "lada": [0.1, 0.1]}))
    assert [entry(table, arm).mark for arm in ("standalone", "fedkd", "lada")] == ["best", "best", None]
    assert entry(table, "improvement").mean == pytest.approx(-5)
    table = built(tmp_path, cells({"standalone": [0.2, 0.2], "fedkd": [0.2, 0.2], "lada": [0.3, 0.3]}))
    assert [entry(table, arm).mark for arm in ("standalone", "fedkd", "lada")] == ["second", "second", "best"]


def test_one_alone_is_the_best_of_nothing(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"lada": [0.6, 0.6], "oracle": [0.9, 0.9]}))
    assert entry(table, "lada").mark is None
    table = built(tmp_path, cells({"fedkd": [0.5, None], "lada": [0.6, 0.6]}))
    assert entry(table, "lada").mark is None, "the other is of fewer seeds and not ranked"


def test_in_table_4_a_server_that_nobody_trains_is_no_rival(tmp_path: Path) -> None:
    arms = {"sft": {"method": "sft"}, "rstar": {"method": "rstar"}, "lada": ARMS["lada"]}
    rows = [one for party in ("client-1", "server") for one in cells({"lada": [0.6, 0.6]}, party=party)]
    rows += cells({"sft": [0.5, 0.5], "rstar": [0.4, 0.4]})
    for arm in ("sft", "rstar"):
        rows += [row(arm, 0.7, party="server", round=0, seed=seed) for seed in (0, 1)]
    table = built(tmp_path, rows, "table4", arms=arms)
    server = {arm: table.entries[(arm,), ("zero-shot", "server")] for arm in (*arms, "improvement")}
    client = {arm: table.entries[(arm,), ("zero-shot", "client-1")] for arm in (*arms, "improvement")}
    assert [client[arm].mark for arm in arms] == ["second", None, "best"]
    assert client["improvement"].baseline == "sft" and not client["sft"].notes
    assert [server[arm].mark for arm in arms] == [None, None, None]
    assert server["improvement"].mean is None
    (came,), (no_gain,) = server["sft"].notes, server["improvement"].notes
    assert "The model as it came" in table.footnotes[came] and "No gain" in table.footnotes[no_gain]
    assert not server["lada"].notes
    beside = built(
        tmp_path, [row("standalone", 0.7, party="server", round=0), row("lada", 0.6, party="server")]
    )
    assert entry(beside, "standalone", "server").mark == "best", "the paper ranks it in Table II"


def test_means_that_are_printed_alike_are_equal(tmp_path: Path) -> None:
    table = built(
        tmp_path, cells({"standalone": [0.8382, 0.8382], "fedkd": [0.8378, 0.8378], "lada": [0.83, 0.84]})
    )
    assert [entry(table, arm).mark for arm in ("standalone", "fedkd", "lada")] == ["best", "best", None]


def test_what_is_missing_is_missing_and_never_zero(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"standalone": [0.3, 0.4], "lada": [0.6, 0.6]}))
    assert entry(table, "fedkd") == Entry(paper=24.0, cell={**entry(table, "fedkd").cell, "arm": "fedkd"}), (
        "nothing but the paper's figure"
    )
    assert entry(table, "lada", party="server").mean is None
    assert entry(table, "improvement").mean == pytest.approx(25), "of what was measured"
    assert "scenario 1, zero-shot, fedkd: no finished run of seeds 0, 1" in table.missing
    assert "scenario 1, zero-shot, lada, server: no accuracy in seeds 0, 1" in table.missing
    assert "scenario 1, zero-shot, oracle: no finished run of seeds 0, 1" in table.missing


def test_a_place_without_any_run_is_named_once(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"lada": [0.6, 0.6]}), scenarios=["1", "2"])
    about = [line for line in table.missing if line.startswith("scenario 2")]
    assert about == ["scenario 2, zero-shot: no finished run of seeds 0, 1"]
    empty = built(tmp_path, [])
    assert empty.missing == ("scenario 1, zero-shot: no finished run of seeds 0, 1",)
    assert all(one.mean is None and one.mark is None for one in empty.entries.values())


def test_seeds_are_counted_and_fewer_seeds_are_not_ranked(tmp_path: Path) -> None:
    values = {"standalone": [0.3, 0.4], "fedkd": [0.9, None], "lada": [0.6, 0.6]}
    table = built(tmp_path, cells(values))
    found = entry(table, "fedkd")
    assert found.mean == pytest.approx(90) and found.std is None and found.mark is None
    assert notes(table, "fedkd") == ["1 of 2 seeds (without seed 1), so no standard deviation."]
    assert entry(table, "lada").mark == "best" and entry(table, "standalone").mark == "second"
    assert entry(table, "improvement").mean == pytest.approx(25), "against the baseline with both seeds"
    assert "scenario 1, zero-shot, fedkd: no finished run of seed 1" in table.missing


def test_a_gain_is_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"fedkd": [0.5, 0.3], "lada": [0.6, None]}))
    gain = entry(table, "improvement")
    assert gain.mean == pytest.approx(10) and gain.seeds == (0,)
    assert notes(table, "improvement") == ["1 of 2 seeds (without seed 1), so no standard deviation."]
    assert entry(table, "fedkd").mark is None and entry(table, "lada").mark is None, "no two of as many seeds"


def test_one_seed_has_no_deviation_and_that_is_said_once(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"fedkd": [0.5], "lada": [0.6]}), seeds=[0])
    assert entry(table, "lada").std is None and notes(table, "lada") == []
    assert "In all cells: One seed, so no standard deviation." in table.remarks


def test_an_accuracy_that_is_no_number_is_missing(tmp_path: Path) -> None:
    table = built(tmp_path, cells({"fedkd": [0.5, math.nan], "lada": [math.nan, math.nan]}))
    assert entry(table, "fedkd").mean == pytest.approx(50) and entry(table, "fedkd").seeds == (0,)
    assert entry(table, "lada").mean is None and entry(table, "improvement").mean is None
    assert "scenario 1, zero-shot, lada, client-1: no accuracy in seeds 0, 1" in table.missing


def test_rates_are_blocks_of_their_own_or_a_sentence(tmp_path: Path) -> None:
    rows = cells({"fedkd": [0.5, 0.5], "lada": [0.6, 0.6]})
    rows += [row("lada", 0.02 * (1 + seed), "unparsed_rate", seed=seed) for seed in (0, 1)]
    rows += [row("lada", 0.0, "truncated_rate", seed=seed) for seed in (0, 1)]
    table = built(tmp_path, rows)
    (block,) = table.blocks
    assert block.name == "table2-unparsed" and entry(block, "lada").mean == pytest.approx(3)
    assert entry(block, "fedkd").mean is None
    assert ("zero-shot", "improvement") not in block.columns
    assert "Answers cut off at the token limit: none in any cell." in table.remarks
    assert entry(table, "lada").unparsed == pytest.approx(3) and entry(table, "lada").truncated == 0
    bare = built(tmp_path, cells({"lada": [0.6, 0.6]}))
    assert bare.blocks == () and "Answers without a letter: not collected." in bare.remarks


def test_the_papers_contradictions_stand_where_they_are(tmp_path: Path) -> None:
    rows = [one for party in ("client-1", "server") for one in cells({"lada": [0.6, 0.6]}, party=party)]
    table = built(tmp_path, rows, scenarios=["1", "2"])
    (note,) = table.entries[("scenario 2", "server"), ("zero-shot", "improvement")].notes
    assert "54.2 − 50.5 = 3.7" in table.footnotes[note]
    assert any("147 of the 150" in remark for remark in table.remarks)


def test_best_rounds_are_beside_the_last_ones(tmp_path: Path) -> None:
    rows = [row("lada", value, round=number, seed=0) for number, value in enumerate((0.9, 0.7, 0.6))]
    rows += [row("lada", value, round=number, seed=1) for number, value in enumerate((0.9, 0.5, 0.6))]
    found = entry(built(tmp_path, rows), "lada")
    assert found.mean == pytest.approx(60) and found.best_round == pytest.approx(65)
    rows.append(row("lada", math.nan, round=3, seed=1))
    rows.append(row("lada", 0.6, round=3, seed=0))
    found = entry(built(tmp_path, rows), "lada")
    assert found.seeds == (0,) and found.best_round == pytest.approx(70), "of the seeds that count"


def test_table_5_has_settings_and_arms_in_rows(tmp_path: Path) -> None:
    arms = {"lada": ARMS["lada"], "without-filter": {"method": "lada"}}
    rows = cells({"lada": [0.6, 0.6], "without-filter": [0.5, 0.5]}, shots=1)
    table = built(tmp_path, rows, "table5", arms=arms, shots=[1, 0], scenarios=["1", "2"])
    outer = [(setting, arm) for setting in ("one-shot", "zero-shot") for arm in (*arms, "improvement")]
    assert list(table.rows) == outer
    assert table.columns[:4] == tuple(
        ("scenario 1", party) for party in ("client-1", "client-2", "client-3", "server")
    )
    found = table.entries[("one-shot", "without-filter"), ("scenario 1", "client-1")]
    assert found.mean == pytest.approx(50) and found.paper == 22.8 and found.mark == "second"


def grid_rows(value: Mapping[str, float], parties: Sequence[str]) -> list[Row]:
    return [
        row("lada", number, at=at, party=party, seed=seed)
        for at, number in value.items()
        for party in parties
        for seed in (0, 1)
    ]


AT = "round_reward_weight={} exploration_weight={}"
GRID = {"method.reward.round_reward_weight": [0.33, 0.66], "method.filter.exploration_weight": [0.33]}


def test_table_6_ranks_points_and_has_the_mean_over_parties(tmp_path: Path) -> None:
    values = {AT.format(0.33, 0.33): 0.5, AT.format(0.66, 0.33): 0.6}
    rows = grid_rows(values, ("client-1", "client-2", "client-3"))
    rows += grid_rows({at: value - 0.2 for at, value in values.items()}, ("server",))
    arms = {"lada": ARMS["lada"]}
    table = built(tmp_path, rows, "table6", arms=arms, grid=GRID)
    found = table.entries[("lab-math", AT.format(0.66, 0.33)), ("zero-shot", "mean")]
    assert found.mean == pytest.approx((3 * 60 + 40) / 4) and found.mark == "best" and found.paper == 36.0
    assert table.labels[AT.format(0.33, 0.33)] == "α = 0.33, λ = 0.33"
    assert all("improvement" not in row_key for row_key in table.rows)
    rows = [one for one in rows if not (one.party == "server" and one.at == AT.format(0.33, 0.33))]
    table = built(tmp_path, rows, "table6", arms=arms, grid=GRID)
    assert table.entries[("lab-math", AT.format(0.33, 0.33)), ("zero-shot", "mean")].mean is None


def test_table_1_is_the_configuration_beside_the_paper() -> None:
    table = table1("lab")
    found = table.entries[("scenario 1",), ("", "client-3")]
    assert (found.text, found.paper_text) == ("Meta-Llama-3-8B", "LLaDa-3-8B")
    for (_, (_, column)), one in table.entries.items():
        if column in ("architecture", "size"):
            assert one.text == one.paper_text, "the configuration agrees with the paper"
        elif "LLaDa" not in (one.paper_text or ""):
            assert (one.text or "").lower() == (one.paper_text or "").lower()


def test_what_was_not_collected_is_named_and_the_rest_is_built(tmp_path: Path) -> None:
    results, configs = write_results(tmp_path, "table2", cells({"lada": [0.6, 0.6]}), matrix=MATRIX)
    found = build_all("lab", results, configs)
    assert [table.name for table in found.tables] == ["table1", "table2"]
    assert set(found.missing) == {"table3", "table4", "table5", "table6"}
    assert "make collect MATRIX=table3" in found.missing["table3"]
