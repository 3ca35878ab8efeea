"""What a matrix's runs were made with: rounds, questions, selection, weights, rates, from configurations.

A run's id ends with the hash of its whole configuration. So what configs/ says now is what a run was made
with where it gives the same id; of any other run nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lada.config import RunConfig
from lada.layers import read_yaml, shipped
from lada.matrix import cells
from lada.report.arrange import LADA
from lada.report.compare import Cell
from lada.report.results import RUN, Results
from lada.runs import resolve_run
from lada.selection.select import SelectOptions

SIZES: Mapping[str, Callable[[RunConfig], int]] = {
    "rounds": lambda config: config.rounds,
    "training questions a client": lambda config: config.data.num_train,
    "test questions a client": lambda config: config.data.num_test,
    "public questions": lambda config: config.data.num_public,
}
IN_PAPER = {
    "rounds": ("rounds",),
    "training questions a client": ("data", "num_train"),
    "test questions a client": ("data", "num_test"),
    "public questions": ("data", "num_public"),
}
"""Where `SIZES` stand in size ``paper`` of the paper tier."""


@dataclass(frozen=True)
class Made:
    """Configurations of a matrix's runs."""

    results: Results

    @cached_property
    def configs(self) -> dict[cells.Cell, RunConfig]:
        """Cell -> configuration, of the runs that were made with what configs/ says now."""
        found = {}
        for cell in cells.expand(self.results.matrix):
            run_id = self._run_ids.get(_key(cell))
            config = None if run_id is None else self._resolved(cell)
            if config is not None and config.run_id == run_id:
                found[cell] = config
        return found

    @cached_property
    def _run_ids(self) -> dict[tuple[Any, ...], str]:
        rows = self.results.runs[[*RUN, "run_id"]].itertuples(index=False, name=None)
        return {tuple(row[:-1]): str(row[-1]) for row in rows}

    def _resolved(self, cell: cells.Cell) -> RunConfig:
        matrix, configs = self.results.matrix, self.results.configs
        return resolve_run(cells.cell_layers(matrix, cell, resolve_run, configs))

    def remarks(self) -> list[str]:
        """Sentences for below a table; of a matrix without runs none."""
        runs, known = len(self._run_ids), list(self.configs.values())
        found = []
        if known:
            found = [f"{self._sizes(known)}.", *self._selection(), *self._rates()]
        if len(known) < runs:
            found.append(
                f"{runs - len(known)} of {runs} runs were made with other configurations than configs/ gives "
                "now, of which nothing is said here."
            )
        return found

    def _sizes(self, known: Iterable[RunConfig]) -> str:
        paper = read_yaml(shipped("tiers", "paper", self.results.configs))["sizes"]["paper"]
        known = list(known)
        parts = []
        for what, size in SIZES.items():
            values, printed = sorted({size(config) for config in known}), paper
            for key in IN_PAPER[what]:
                printed = printed[key]
            parts.append(
                f"{' to '.join(map(str, dict.fromkeys((values[0], values[-1]))))} {what} [{printed}]"
            )
        return f"Made with (the paper's sizes in brackets): {', '.join(parts)}"

    def _selection(self) -> Iterator[str]:
        """How LaDa selects, and its weights where all its runs have the same."""
        options = [config.method for cell, config in self.configs.items() if cell.arm == LADA]
        rules = {selected(one["select"]) for one in options if "select" in one}
        weights = {shown for shown in map(weights_text, options) if shown}
        if len(rules) == 1:
            yield f"LaDa selects {rules.pop()}{f'; {weights.pop()}' if len(weights) == 1 else ''}."

    def _rates(self) -> Iterator[str]:
        """Rates that were tuned: by arm, as the runs had them."""
        matrix, found = self.results.matrix, dict[str, str]()
        for cell, config in self.configs.items():
            client = config.training.client
            if matrix.arms[cell.arm].tuned is not None:
                found[matrix.label(cell.arm)] = f"{client.learning_rate:g} and {client.decay:g}"
        if found:
            listed = "; ".join(f"{arm} {rates}" for arm, rates in found.items())
            yield (
                "The clients' rate, and its decay from round to round, were tuned for each arm on seeds "
                f"apart (matrix {self.results.tier}-tuning): {listed}."
            )

    def weights(self, cell: Cell) -> str:
        """LaDa's weights in a cell of a table; empty: unknown, or it has none.

        A cell without a run has those that it would be made with.
        """
        for one in cells.expand(self.results.matrix):
            place = (one.dataset, one.scenario, one.shots, one.arm, one.at)
            if place == (cell.dataset, cell.scenario, cell.shots, cell.arm, cell.at):
                has_run = _key(one) in self._run_ids
                config = self.configs.get(one) if has_run else self._resolved(one)
                return "" if config is None else weights_text(config.method)
        return ""


def _key(cell: cells.Cell) -> tuple[Any, ...]:
    """As `RUN` orders it."""
    return (cell.arm, cell.at, cell.scenario, cell.dataset, cell.shots, cell.seed)


def selected(options: Mapping[str, Any]) -> str:
    """What a filter takes, beside what the paper's takes, from the options ``select`` of a method."""
    paper = SelectOptions()
    if options["mode"] != paper.mode:
        return f"by mode {options['mode']} in place of its filter"
    if options["rule"] == paper.rule:
        also = ", as the paper's" if options["threshold"] == paper.threshold else ""
        return f"what its filter scores above {options['threshold']:g}{also}"
    return (
        f"a share of {options['share']:g} by its filter's scores (rule {options['rule']}), where the paper "
        f"takes what scores above {paper.threshold:g}"
    )


def weights_text(options: Mapping[str, Any]) -> str:
    """The weights of Eqs. 7 and 10 by the paper's letters; empty where a method has none."""
    if not {"reward", "filter"} <= options.keys():
        return ""
    alpha, exploration = options["reward"]["round_reward_weight"], options["filter"]["exploration_weight"]
    return f"α = {alpha:g}, λ = {exploration:g}"
