"""The paper's figures as data: all are there, and the contradictions are what they are said to be."""

from __future__ import annotations

import itertools

import pytest

from lada.report.paper import FOOTNOTES, footnotes, printed, printed_number, remarks

CLIENTS = ("client-1", "client-2", "client-3")
PARTIES = (*CLIENTS, "server")
BASELINES = ("standalone", "fedkd", "fedmkt", "wasp")
PLACES = [("table2", "math", scenario) for scenario in "1234"] + [("table3", "cot", "1")]


def value(table: str, **cell: str) -> float:
    found = printed_number(table, {"dataset": "math", "scenario": "1", **cell})
    assert found is not None, cell
    return found


def row(table: str, **cell: str) -> list[float]:
    return [value(table, party=party, **cell) for party in PARTIES]


def test_39_of_40_improvements_are_the_gap_to_the_best_baseline_and_the_other_is_flagged() -> None:
    odd = []
    for (table, dataset, scenario), shots, party in itertools.product(PLACES, "10", PARTIES):
        place = {"dataset": dataset, "scenario": scenario, "shots": shots, "party": party}
        best = max(value(table, arm=arm, **place) for arm in BASELINES)
        if round(value(table, arm="lada", **place) - best, 1) != value(table, arm="improvement", **place):
            odd.append((table, place))
    ((table, place),) = odd
    assert (table, place["scenario"], place["shots"], place["party"]) == ("table2", "2", "0", "server")
    (said,) = footnotes(table, {**place, "arm": "improvement"})
    assert "54.2 − 50.5 = 3.7" in said
    assert value("table2", scenario="2", shots="0", party="server", arm="wasp") == 49.5


def test_every_table_has_all_its_cells() -> None:
    counts = {
        name: len(printed(name)) for name in ("table1", "table2", "table3", "table4", "table5", "table6")
    }
    wanted = {"table1": 4 * 6, "table2": 4 * 2 * 4 * 6, "table3": 2 * 4 * 6, "table4": 4 + 3 * 3}
    assert counts == {**wanted, "table5": 2 * 2 * 4 * 4, "table6": 2 * 2 * 4 * 5}
    assert printed("table9") == {}


def test_table_4_repeats_table_2s_one_shot_row() -> None:
    assert row("table4", shots="1", arm="lada") == row("table2", shots="1", arm="lada")
    assert any("one-shot" in one for one in remarks("table4"))


def test_table_5_against_table_2() -> None:
    for scenario, shots in itertools.product("12", "10"):
        place = {"scenario": scenario, "shots": shots}
        same = row("table5", arm="lada", **place) == row("table2", arm="lada", **place)
        assert same == (not footnotes("table5", {**place, "arm": "lada"})), place
    equal = [
        left == right
        for scenario, shots in itertools.product("12", "10")
        for left, right in zip(
            row("table5", scenario=scenario, shots=shots, arm="without-filter"),
            row("table2", scenario=scenario, shots=shots, arm="fedmkt"),
            strict=True,
        )
    ]
    assert equal.count(True) == 15 and len(equal) == 16
    assert any("15 of 16" in one for one in remarks("table5"))


@pytest.mark.parametrize("weights", itertools.product(("0.33", "0.66"), repeat=2))
def test_table_6_has_the_means_that_it_prints(weights: tuple[str, str]) -> None:
    at = f"round_reward_weight={weights[0]} exploration_weight={weights[1]}"
    for dataset, shots in itertools.product(("math", "cot"), "10"):
        place = {"dataset": dataset, "shots": shots, "arm": "lada", "at": at}
        assert value("table6", party="mean", **place) == pytest.approx(
            sum(row("table6", **place)) / 4, abs=0.0501
        )


def test_table_6_against_table_3() -> None:
    at = "round_reward_weight=0.33 exploration_weight=0.33"
    place = {"dataset": "cot", "shots": "0", "arm": "lada"}
    six, three = row("table6", at=at, **place), row("table3", **place)
    assert [left == right for left, right in zip(six, three, strict=True)] == [False, True, True, True]
    assert footnotes("table6", {**place, "scenario": "1", "party": "client-1", "at": at})
    assert footnotes("table3", {**place, "scenario": "1", "party": "client-1"})


def test_what_is_said_of_all_accuracies_is_so() -> None:
    cells = [
        (party, value(table, dataset=dataset, scenario=scenario, shots=shots, party=party, arm=arm))
        for (table, dataset, scenario), shots in itertools.product(PLACES, "10")
        for party, arm in itertools.product(PARTIES, (*BASELINES, "lada"))
    ]
    assert len(cells) == 200 and sum(number < 25 for _, number in cells) == 16
    of_clients = [number for party, number in cells if party in CLIENTS]
    assert len(of_clients) == 150
    assert sorted(one for one in of_clients if round(10 * one) % 2) == [43.3, 43.5, 64.9]


def test_every_contradiction_concerns_a_printed_cell() -> None:
    names = ("dataset", "scenario", "shots", "arm", "party", "at")
    for one in FOOTNOTES:
        cells = [dict(zip(names, key, strict=True)) for key in printed(one.table)]
        assert any(one.concerns(cell) for cell in cells), one
        assert not one.where or not all(one.concerns(cell) for cell in cells), one
