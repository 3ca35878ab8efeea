"""What figures draw, from a matrix's rows: means over seeds by place, arm, party and round.

A *place* is a scenario of one data set in one setting. Accuracies leave here in per cent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from lada.config import SERVER
from lada.matrix.rows import ASIDE
from lada.report.results import PLACE, Results, final


@dataclass(frozen=True, order=True)
class Place:
    """A scenario of one data set in one setting."""

    dataset: str
    scenario: str
    shots: int

    @property
    def setting(self) -> str:
        """As the paper names it."""
        return "one-shot" if self.shots else "zero-shot"

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of this place."""
        here = (rows["dataset"] == self.dataset) & (rows["scenario"] == self.scenario)
        return rows[here & (rows["shots"] == self.shots)]

    def __str__(self) -> str:
        return f"{self.dataset}, scenario {self.scenario}, {self.setting}"


def places(results: Results) -> list[Place]:
    """All places of the matrix in its order, measured or not."""
    matrix = results.matrix
    return [
        Place(dataset, scenario, shots)
        for dataset in matrix.datasets
        for scenario in matrix.scenarios
        for shots in matrix.shots
    ]


def parties(rows: pd.DataFrame) -> list[str]:
    """Clients in order, the server last."""
    return sorted(set(rows["party"]), key=lambda name: (name == SERVER, len(name), name))


def short(model: str) -> str:
    """A model without its owner."""
    return model.rpartition("/")[2]


def size(model: str) -> float:
    """Billions of parameters as the model's name tells; infinite where it does not."""
    found = re.search(r"(\d+(?:\.\d+)?)[bB](?![a-zA-Z])", short(model))
    return float(found[1]) if found else float("inf")


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``mean``, ``std`` (ddof 1, NaN for one seed) and ``seeds`` of the values of each group.

    Several rows of one seed in a group (parties, say) are averaged first: every seed weighs the same.
    """
    each = rows.groupby([*by, "seed"], as_index=False)["value"].mean()
    found: pd.DataFrame = each.groupby(list(by), as_index=False)["value"].agg(
        mean="mean", std="std", seeds="count"
    )
    return found


def accuracies(results: Results) -> pd.DataFrame:
    """Rows of accuracy of every round, in per cent."""
    rows = results.rows[results.rows["metric"] == "accuracy"]
    return rows.assign(value=100 * rows["value"])


def last_accuracies(results: Results) -> pd.DataFrame:
    """The last round's accuracies, one row per arm, place, seed and party, in per cent."""
    rows = final(results.rows)
    return rows.assign(value=100 * rows["value"])


def exchanged(results: Results) -> pd.DataFrame:
    """Bytes of each run as ``once`` and ``unicast``, one row per arm, place and seed.

    Counted are ids, texts and what stands for them; adapters and rewards are apart (architecture, section 3).
    ``once``: a message to all counts once; ``unicast``: once per recipient. A run without messages has zero.
    """
    rows, keys = results.rows, ["arm", *PLACE, "seed"]
    clients = rows[rows["party"] != SERVER].groupby(keys)["party"].nunique().rename("clients")
    sent = rows[rows["metric"].str.startswith("bytes_sent/")]
    parts = sent["metric"].str.split("/", expand=True).reindex(columns=range(4))
    sent = sent.assign(to_all=parts[2] == "all")[~parts[3].isin(ASIDE)]
    sent = sent.merge(clients.reset_index(), on=keys)
    copies = sent["clients"].where(sent["to_all"], 1)  # whoever sends, all others are as many as the clients
    sent = sent.assign(once=sent["value"], unicast=sent["value"] * copies)
    totals = sent.groupby(keys)[["once", "unicast"]].sum()
    return totals.reindex(clients.index, fill_value=0.0).astype(float).reset_index()


def gaps(results: Results, arms: Collection[str] | None = None) -> list[str]:
    """Which runs of the matrix are not among the results, a line per arm and place.

    Args:
        arms: those that are asked for; None: all.
    """
    keys = ["arm", *PLACE]
    seeds = {tuple(key): set(group["seed"]) for key, group in results.rows.groupby(keys)}
    return list(_gaps(results, results.matrix.arms if arms is None else arms, seeds))


def _gaps(
    results: Results, arms: Collection[str], seeds: dict[tuple[str | int, ...], set[int]]
) -> Iterator[str]:
    matrix = results.matrix
    for place in places(results):
        for arm in (one for one in matrix.arms if one in arms):
            found = seeds.get((arm, place.scenario, place.dataset, place.shots), set())
            wanted = set(matrix.seeds)
            if not found:
                yield f"{matrix.label(arm)}, {place}: no finished run"
            elif wanted - found:
                yield f"{matrix.label(arm)}, {place}: {len(wanted & found)} of {len(wanted)} seeds"


def seeds_said(results: Results, *, bands: bool = True) -> str:
    """How many seeds stand behind the figure's numbers, and what its bands are; a sentence."""
    counts = results.rows.groupby(["arm", *PLACE])["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return "One seed, so no spread is drawn."
    number = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    return f"Means over {number}{'; spread: one standard deviation over them' if bands else ''}."


def of_bytes(value: float) -> str:
    """Bytes as people read them: three significant digits and a unit."""
    for scale, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.3g} {word}"
    return f"{value:.3g} B"
