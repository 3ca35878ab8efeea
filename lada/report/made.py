"""What a matrix's runs were made with: rounds, questions, selection, weights, rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lada.layers import read_yaml, shipped
from lada.report.arrange import LADA
from lada.report.compare import Cell
from lada.report.results import Results

SIZES = {
    "rounds": "rounds",
    "training questions a client": "data.num_train",
    "test questions a client": "data.num_test",
    "public questions": "data.num_public",
}
"""What tables call them -> their keys in run.yaml, and in size ``paper`` of the paper tier."""
PAPER_THRESHOLD = 0.5
"""What the paper's filter takes scores above (Section IV-C)."""
ALPHA, LAMBDA = "method.reward.round_reward_weight", "method.filter.exploration_weight"
SELECT = "method.select"

Config = Mapping[str, Any]
"""A run.yaml: dotted key -> value."""


@dataclass(frozen=True)
class Made:
    """Configurations of a matrix's runs."""

    results: Results

    @cached_property
    def arms(self) -> list[tuple[str, Config]]:
        """Arm and configuration of every run whose configuration was collected."""
        runs = self.results.runs[["arm", "run_id"]].itertuples(index=False, name=None)
        return [(arm, self.results.made[run]) for arm, run in runs if run in self.results.made]

    def remarks(self) -> list[str]:
        """Sentences for below a table; none where no configuration was collected."""
        found = [config for _, config in self.arms]
        return [self._sizes(found), *self._selection(), *self._rates()] if found else []

    def _sizes(self, found: Sequence[Config]) -> str:
        paper = read_yaml(shipped("tiers", "paper", self.results.configs))["sizes"]["paper"]
        printed = {"rounds": paper["rounds"], **{f"data.{key}": size for key, size in paper["data"].items()}}
        parts = []
        for what, key in SIZES.items():
            sizes = sorted({config[key] for config in found})
            parts.append(
                f"{' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} {what} [{printed[key]}]"
            )
        return f"Made with (the paper's sizes in brackets): {', '.join(parts)}."

    def _selection(self) -> Iterator[str]:
        """How LaDa selects, and its weights where all its runs have the same."""
        found = [config for arm, config in self.arms if arm == LADA]
        rules = {selected(config) for config in found if f"{SELECT}.mode" in config}
        weights = {shown for shown in map(weights_text, found) if shown}
        if len(rules) == 1:
            yield f"LaDa selects {rules.pop()}{f'; {weights.pop()}' if len(weights) == 1 else ''}."

    def _rates(self) -> Iterator[str]:
        """Rates that were tuned: by arm, as the runs had them."""
        matrix, found = self.results.matrix, dict[str, str]()
        for arm, config in self.arms:
            if matrix.arms[arm].tuned is not None:
                rate, decay = (config[f"training.client.{key}"] for key in ("learning_rate", "decay"))
                found[matrix.label(arm)] = f"{rate:g} and {decay:g}"
        if found:
            listed = "; ".join(f"{arm} {rates}" for arm, rates in found.items())
            yield (
                "The clients' rate, and its decay from round to round, were tuned for each arm on seeds "
                f"apart (matrix {self.results.tier}-tuning): {listed}."
            )

    def weights(self, cell: Cell) -> str:
        """LaDa's weights in the runs of a cell of a table; empty: unknown, or it has none."""
        runs = self.results.runs
        for axis in ("arm", "at", "scenario", "dataset", "shots"):
            runs = runs[runs[axis] == getattr(cell, axis)]
        configs = [self.results.made[run] for run in runs["run_id"] if run in self.results.made]
        shown = {weights_text(config) for config in configs}
        return shown.pop() if len(shown) == 1 else ""


def selected(config: Config) -> str:
    """What a filter takes, beside what the paper's takes."""
    option = {key: config[f"{SELECT}.{key}"] for key in ("mode", "rule", "threshold", "share")}
    if option["mode"] != "filter":
        return f"by mode {option['mode']} in place of its filter"
    if option["rule"] == "threshold":
        also = ", as the paper's" if option["threshold"] == PAPER_THRESHOLD else ""
        return f"what its filter scores above {option['threshold']:g}{also}"
    return (
        f"a share of {option['share']:g} by its filter's scores (rule {option['rule']}), where the paper "
        f"takes what scores above {PAPER_THRESHOLD:g}"
    )


def weights_text(config: Config) -> str:
    """The weights of Eqs. 7 and 10 by the paper's letters; empty where a method has none."""
    if not {ALPHA, LAMBDA} <= config.keys():
        return ""
    return f"α = {config[ALPHA]:g}, λ = {config[LAMBDA]:g}"
