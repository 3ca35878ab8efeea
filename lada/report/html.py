"""One self-contained page of a tier's results: tables, figures, cases, what is missing, where all is from."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lada.errors import DataError
from lada.layers import CONFIGS
from lada.report import figures
from lada.report.cases import Case, read_cases
from lada.report.layout import Table
from lada.report.render import to_html
from lada.report.results import ROOT
from lada.report.style import DPI, Drawing
from lada.report.tables import build_all
from lada.rundir import write_atomic
from lada.tabular import read_csv

REPORT = "report.html"
TEMPLATE = "template.html"
SHORT = 12
"""Characters of a commit that are shown."""
RUNS = "-runs.csv"
CSS_DPI = 130
"""Figures are shown a little larger than on paper."""


@dataclass(frozen=True)
class Study:
    """The cases of one matrix."""

    name: str
    matrix: str
    cases: tuple[Case, ...]
    labels: Mapping[str, str]

    def label(self, arm: str) -> str:
        """What an arm is called."""
        return self.labels.get(arm, arm)


@dataclass(frozen=True)
class Provenance:
    """The runs of one matrix, as its file of runs has them.

    Attributes:
        taken: run ids that another matrix's list has an anchor for; an id stands once on a page.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    taken: frozenset[str]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Cells of each run, and its anchor."""
        return [
            {
                "anchor": "" if row["run_id"] in self.taken else row["run_id"],
                "cells": [_shown(column, row[column]) for column in self.columns],
            }
            for row in self.rows
        ]

    @cached_property
    def commits(self) -> list[str]:
        """Commits that runs were made with."""
        return sorted({row.get("git", "")[:SHORT] or "unknown" for row in self.rows})

    @property
    def dirty(self) -> int:
        """Runs whose checkout had changes."""
        return sum(row.get("git_dirty") == "True" for row in self.rows)


def _shown(column: str, text: str) -> str:
    return text[:SHORT] if column in ("git", "amended_from") else text


def write_report(tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> Path:
    """Write ``results/<tier>/report.html`` from what was collected; the same results give the same bytes.

    Raises:
        ConfigError, DataError: results that are there are wrong.
    """
    path = results / tier / REPORT
    write_atomic(path, page(tier, results, configs))
    return path


def page(tier: str, results: Path, configs: Path = CONFIGS) -> str:
    """The page's HTML; see `write_report`."""
    built, gallery = build_all(tier, results, configs), figures.draw(tier, results, configs)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    provenance = _provenance(results / tier)
    tables_missing = [f"{name}: {why}" for name, why in built.missing.items()]
    return environment.get_template(TEMPLATE).render(
        tier=tier,
        tables=[_table(table) for table in built.tables],
        figures=[_figure(drawing) for drawing in gallery.drawings],
        studies=list(_studies(tier, results, configs)),
        missing=[*tables_missing, *gallery.missing],
        provenance=provenance,
        run_ids={row["run_id"] for one in provenance.values() for row in one.rows},
    )


def _table(table: Table) -> dict[str, Any]:
    return {"name": table.name, "html": Markup(to_html(table))}  # to_html escapes what it is given


def _figure(drawing: Drawing) -> dict[str, Any]:
    content = drawing.files["png"]
    width, height = (side * CSS_DPI // DPI for side in png_size(content))
    return {
        "name": drawing.name,
        "title": drawing.title,
        "caption": drawing.caption,
        "stated": drawing.stated,
        "missing": drawing.missing,
        "width": width,
        "height": height,
        "source": f"data:image/png;base64,{base64.b64encode(content).decode()}",
    }


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels, from a PNG's first chunk."""
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def _studies(tier: str, results: Path, configs: Path) -> Iterator[Study]:
    for name, matrix in figures.CASES.items():
        cases = read_cases(results / tier / f"{matrix}-cases.jsonl")
        if cases:
            yield Study(name, matrix, tuple(cases), figures.labels(matrix, tier, configs))


def _provenance(folder: Path) -> dict[str, Provenance]:
    """Matrix -> its runs, of all matrices of the tier.

    Raises:
        DataError: a file has no run ids, or is no CSV.
    """
    found: dict[str, Provenance] = {}
    taken: set[str] = set()
    for path in sorted(folder.glob(f"*{RUNS}")):
        columns, lines = read_csv(path)
        rows = tuple(dict(zip(columns, line, strict=True)) for line in lines)
        if "run_id" not in columns:
            raise DataError(f"{path}: no column run_id; `make collect` writes it")
        found[path.name.removesuffix(RUNS)] = Provenance(columns, rows, frozenset(taken))
        taken |= {row["run_id"] for row in rows}
    return found
