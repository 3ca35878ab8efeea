"""LaDa's gain over the best baseline: its test, the correction over a table, and when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lada.errors import DataError
from lada.matrix.rows import Row
from lada.report.statistics import Paired, difference_interval, mcnemar
from tests.report.made_up import counts, row
from tests.report.made_up_table2 import built, cells, entry


def paired_rows(party: str, other: str, strata: Sequence[tuple[int, int]], questions: int) -> list[Row]:
    """LaDa and another arm whose accuracies are what the counts say; the other has half right."""
    found = []
    for seed, (won, lost) in enumerate(strata):
        place = {"party": party, "seed": seed}
        found.append(row(other, 0.5, **place))
        found.append(row("lada", 0.5 + (won - lost) / questions, **place))
        found += counts("lada", other, won, lost, questions, **place)
    return found


def test_gains_are_tested_over_the_questions_of_all_seeds_and_corrected_over_the_table(
    tmp_path: Path,
) -> None:
    rows = paired_rows("client-1", "fedkd", [(20, 5), (18, 3)], 100)
    rows += paired_rows("client-2", "fedkd", [(5, 5), (6, 4)], 100)
    table = built(tmp_path, rows)
    first, second = (entry(table, "improvement", party) for party in ("client-1", "client-2"))
    assert first.mean == pytest.approx(15) and second.mean == pytest.approx(1)
    p = [mcnemar(38, 8), mcnemar(11, 9)]
    assert first.comparison is not None and second.comparison is not None
    assert [first.comparison.p, second.comparison.p] == p
    assert first.p == pytest.approx(2 * p[0]) and second.p == pytest.approx(p[1])
    assert (first.comparison.won, first.comparison.lost, first.comparison.questions) == (38, 8, 200)
    low, high = difference_interval([Paired(20, 5, 100), Paired(18, 3, 100)])
    assert first.interval == pytest.approx((100 * low, 100 * high))
    assert low < 0.15 < high and low > 0.08
    assert table.tests == 2


def test_counts_of_the_contrast_the_other_way_round_will_do(tmp_path: Path) -> None:
    rows = cells({"fedkd": [0.5, 0.5], "lada": [0.6, 0.55]})
    rows += counts("fedkd", "lada", 2, 12, 100) + counts("fedkd", "lada", 5, 10, 100, seed=1)
    found = entry(built(tmp_path, rows), "improvement").comparison
    assert found is not None and (found.won, found.lost) == (22, 7)


def test_without_counts_of_a_seed_there_is_no_test(tmp_path: Path) -> None:
    rows = paired_rows("client-1", "fedkd", [(20, 5), (18, 3)], 100)
    table = built(tmp_path, [one for one in rows if not (one.seed == 1 and one.metric.endswith("_lost"))])
    gain = entry(table, "improvement")
    assert gain.mean == pytest.approx(15) and (gain.p, gain.interval, gain.comparison) == (None, None, None)
    assert any("No tests" in remark for remark in table.remarks)


def test_counts_that_contradict_the_accuracies_are_refused(tmp_path: Path) -> None:
    rows = cells({"fedkd": [0.5, 0.5], "lada": [0.6, 0.6]})
    rows += counts("lada", "fedkd", 20, 5, 100) + counts("lada", "fedkd", 20, 10, 100, seed=1)
    where = "table2: lab-math, scenario 1, zero-shot, client-1, lada, seed 0"
    with pytest.raises(DataError, match=f"{where}: accuracies and paired counts against fedkd contradict"):
        built(tmp_path, rows)
