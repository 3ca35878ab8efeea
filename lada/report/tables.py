"""The paper's tables from collected results: `build_all` builds those that can be, and names the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lada.config import SERVER
from lada.layers import CONFIGS, read_yaml, shipped
from lada.report.arrange import HEADS, Spec
from lada.report.build import Builder
from lada.report.layout import Entry, Key, Table
from lada.report.paper import footnotes, printed, remarks
from lada.report.results import ROOT, load

__all__ = ["SPECS", "Built", "Entry", "Table", "build_all", "build_table", "table1"]

_FEDERATED = (("scenario", "party"), ("shots", "arm"))
SPECS = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            Spec("table2", "II", "LaDa and the federated baselines", *_FEDERATED),
            Spec("table3", "III", "LaDa and the federated baselines", *_FEDERATED),
            Spec(
                "table4",
                "IV",
                "LaDa and other reasoning distillation",
                ("arm",),
                ("shots", "party"),
                ranks_untouched=False,
            ),
            Spec("table5", "V", "LaDa without its parts", ("shots", "arm"), ("scenario", "party")),
            Spec(
                "table6",
                "VI",
                "weights of rewards (α) and exploration (λ)",
                ("dataset", "at"),
                ("shots", "party"),
                ranked="at",
                has_mean=True,
            ),
        )
    }
)
"""Tables that come from runs: table -> layout; the matrix has the table's name."""
SCENARIOS = ("1", "2", "3", "4")


@dataclass(frozen=True)
class Built:
    """Tables of a tier.

    Attributes:
        missing: table -> why it cannot be built: its results were not collected.
    """

    tables: tuple[Table, ...]
    missing: dict[str, str]


def build_all(tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> Built:
    """Every table that the tier's collected results allow.

    Raises:
        ConfigError, DataError: results that are there are wrong; see `lada.report.results.load`.
    """
    tables, missing = [table1(tier, configs)], {}
    for name in SPECS:
        path = results / tier / f"{name}.csv"
        if path.is_file():
            tables.append(build_table(name, tier, results, configs))
        else:
            missing[name] = f"{path.name} is not there: `make collect MATRIX={name}` writes it"
    return Built(tuple(tables), missing)


def build_table(name: str, tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> Table:
    """One table of `SPECS`.

    Raises:
        ConfigError, DataError: see `lada.report.results.load`.
    """
    return Builder(load(name, tier, results, configs), SPECS[name]).table()


def table1(tier: str, configs: Path = CONFIGS) -> Table:
    """Table I: the models of each scenario, from the configuration, beside what the paper prints."""
    entries: dict[tuple[Key, Key], Entry] = {}
    said: list[str] = []
    for scenario in SCENARIOS:
        content = read_yaml(shipped("scenarios", scenario, configs))
        models = {party["name"]: party["model"].rpartition("/")[2] for party in content["parties"]}
        clients = [model for name, model in models.items() if name != SERVER]
        facts = {"architecture": _same(map(_family, clients)), "size": _same(map(_billions, clients))}
        for column, text in {**models, **facts}.items():
            cell = {"scenario": scenario, "party": column}
            found = footnotes("table1", cell)
            said += [text for text in found if text not in said]
            entries[(f"scenario {scenario}",), ("", column)] = Entry(
                text=text,
                paper_text=printed("table1").get(("", scenario, "", "", column, "")),
                notes=tuple(said.index(text) for text in found),
                cell=cell,
            )
    columns = dict.fromkeys(column for _, column in entries)
    order = sorted(columns, key=lambda column: _COLUMN_ORDER.get(column[1], 0))
    return Table(
        name="table1",
        title=f"Table I: parties and their models ({tier} tier)",
        row_heads=(HEADS["scenario"],),
        rows=tuple(dict.fromkeys(row for row, _ in entries)),
        columns=tuple(order),
        entries=entries,
        labels={f"scenario {scenario}": f"Scenario {scenario}" for scenario in SCENARIOS},
        footnotes=tuple(said),
        remarks=(*(_STANDS_FOR if tier == "lab" else ()), *_TABLE_1, *remarks("table1")),
    )


_COLUMN_ORDER = {SERVER: 1, "architecture": 2, "size": 3}
_STANDS_FOR = ("On the lab tier a tiny model of the same family stands in for each.",)
_TABLE_1 = (
    "In brackets what the paper prints. Architecture and size say whether the clients' models are of one "
    "family and of one size.",
)


def _same(values: Iterable[str]) -> str:
    return "Same" if len(set(values)) == 1 else "Different"


def _family(model: str) -> str:
    """``Qwen3-0.6B`` -> ``qwen``: the letters that a model's name begins with."""
    found = re.match(r"(?:meta-)?([a-z]+)", model.lower())
    return found[1] if found else model


def _billions(model: str) -> str:
    """``Qwen3-0.6B`` -> ``0.6``; a name without a size stands for itself."""
    found = re.search(r"([0-9.]+)b\b", model.lower())
    return found[1] if found else model
