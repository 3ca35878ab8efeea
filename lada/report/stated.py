"""What the paper's text states of Figures 4 and 5, beside what was measured. No curve was read off."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from lada.report.paper import FAMILIES, printed
from lada.report.results import Results
from lada.report.series import Place, of_bytes

NOT_MEASURED = "not measured"


def accuracies_stated(results: Results, measured: pd.DataFrame) -> tuple[str, ...]:
    """A line per accuracy that the text states of Fig. 4.

    Args:
        measured: ``mean`` by arm, place, party and round, per cent.
    """
    return tuple(_accuracies(results, measured))


def _accuracies(results: Results, measured: pd.DataFrame) -> Iterator[str]:
    for dataset, (_, scenario, shots, arm, party, at), text in _stated(results, "fig4"):
        place, number = Place(dataset, scenario, int(shots)), int(at.removeprefix("round="))
        here = place.of(measured)
        mine = here[(here["arm"] == arm) & (here["party"] == party) & (here["round"] == number)]["mean"]
        value = f"{mine.iloc[0]:.1f}" if len(mine) else NOT_MEASURED
        yield f"{results.matrix.label(arm)}, {place}, {party}, round {number}: paper {text}, here {value}"


def bytes_stated(results: Results, measured: pd.DataFrame) -> tuple[str, ...]:
    """A line per amount that the text states of Fig. 5.

    Args:
        measured: ``mean`` by arm and place, bytes sent once per recipient.
    """
    return tuple(_bytes(results, measured))


def _bytes(results: Results, measured: pd.DataFrame) -> Iterator[str]:
    for dataset, (_, scenario, shots, arm, _, at), text in _stated(results, "fig5"):
        here = measured[(measured["dataset"] == dataset) & (measured["shots"] == int(shots))]
        mine = here[here["arm"] == arm]
        if scenario:
            mine, where = mine[mine["scenario"] == scenario], f"scenario {scenario}"
        else:
            where = at
        found = mine["mean"].min() if at.startswith("least") else mine["mean"].max()
        setting = Place(dataset, scenario, int(shots)).setting
        value = of_bytes(found) if len(mine) else NOT_MEASURED
        yield f"{results.matrix.label(arm)}, {dataset}, {setting}, {where}: paper {text} MB, here {value}"


def _stated(results: Results, figure: str) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(data set of the matrix, the paper's cell, printed text) of what the matrix has.

    What is stated of all scenarios together is of a matrix with several.
    """
    matrix = results.matrix
    for dataset in matrix.datasets:
        for cell, text in printed(figure).items():
            family, scenario, shots, arm, *_ = cell
            is_here = scenario in matrix.scenarios if scenario else len(matrix.scenarios) > 1
            has_arm = arm in matrix.arms and int(shots) in matrix.shots
            if is_here and has_arm and family == FAMILIES.get(dataset):
                yield dataset, cell, text
