"""All figures of a tier: which there are, from which matrix, and where they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lada import convergence
from lada.layers import CONFIGS
from lada.matrix.definition import read_matrix
from lada.report import bars, curves, filters, gap, pareto, theory
from lada.report.case_figure import case_study, missing_cases
from lada.report.cases import read_cases, to_markdown
from lada.report.results import ROOT, Results, load
from lada.report.style import Drawing
from lada.rundir import write_atomic

Draw = Callable[[Results, str], Drawing | None]


@dataclass(frozen=True)
class Plan:
    """One figure.

    Attributes:
        matrix: whose results it draws.
        belongs: whether the paper's evaluation has it, so that it is said to be missing where it is.
    """

    name: str
    matrix: str
    draw: Draw
    belongs: bool = True


PLANS = (
    Plan("fig2", "fig2", gap.learnability),
    Plan("fig4", "table2", curves.rounds),
    Plan("fig5", "table2", bars.traffic),
    Plan("pareto", "table2", pareto.pareto),
    Plan("diagnostics", "table2", filters.selection),
    *(
        Plan(f"{kind}-{matrix}", matrix, draw, belongs=False)
        for matrix, kinds in {
            "table3": ("rounds", "bytes", "pareto", "diagnostics"),
            "table4": ("rounds", "pareto"),
            "table5": ("rounds", "diagnostics"),
            "lab-study": ("pareto", "diagnostics"),
            "lab-selection": ("pareto", "diagnostics"),
        }.items()
        for kind, draw in {
            "rounds": curves.rounds,
            "bytes": bars.traffic,
            "pareto": pareto.pareto,
            "diagnostics": filters.selection,
        }.items()
        if kind in kinds
    ),
)
"""Those of the paper first; ``<kind>-<matrix>`` draws another matrix in the same way."""
CONVERGENCE = "convergence"
CASE_STUDY = "fig6"
CASES = {CASE_STUDY: "table2", "cases-table3": "table3", "cases-table4": "table4", "cases-table5": "table5"}
"""Case studies: name -> matrix."""
INDEX = "README.md"


@dataclass(frozen=True)
class Gallery:
    """Figures of one tier, in order, and the names of those that cannot be drawn, with the reason."""

    drawings: tuple[Drawing, ...]
    missing: tuple[str, ...]


def draw(tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> Gallery:
    """Draw what there are results for; a figure without results is missing, a wrong file is an error.

    Raises:
        DataError: a results file that is there cannot be used.
    """
    drawings: list[Drawing] = []
    missing: list[str] = []
    loaded: dict[str, Results] = {}
    for plan in PLANS:
        path = results / tier / f"{plan.matrix}.csv"
        if path.is_file():
            if plan.matrix not in loaded:
                loaded[plan.matrix] = load(plan.matrix, tier, results, configs)
            found = plan.draw(loaded[plan.matrix], plan.name) if len(loaded[plan.matrix].rows) else None
            if found is not None:
                drawings.append(found)
                continue
        if plan.belongs:
            why = "has nothing to draw here" if path.is_file() else "is not there; `make collect` writes it"
            missing.append(f"{plan.name}: {tier}/{path.name} {why}")
    for name, matrix in CASES.items():
        found = _cases(name, matrix, tier, results, configs)
        if found is not None:
            drawings.append(found)
        elif name == CASE_STUDY:
            path = results / tier / f"{matrix}-cases.jsonl"
            why = "has nothing to draw here" if path.is_file() else "is not there; `make collect` writes it"
            missing.append(f"{name}: {tier}/{path.name} {why}")
    toy = results / f"{CONVERGENCE}.csv"
    if toy.is_file():
        drawings.append(theory.rate(convergence.read(toy), CONVERGENCE))
    else:
        missing.append(f"{CONVERGENCE}: {toy.name} is not there; `make convergence` writes it")
    return Gallery(tuple(drawings), tuple(missing))


def _cases(name: str, matrix: str, tier: str, results: Path, configs: Path) -> Drawing | None:
    cases = read_cases(results / tier / f"{matrix}-cases.jsonl")
    return case_study(load(matrix, tier, results, configs), cases, name) if cases else None


def draw_all(tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS) -> list[Path]:
    """Write all figures of a tier as PDF and PNG, and an index with their captions; returns the files.

    Other figures in that folder are removed, so that none is older than its results.

    Raises:
        DataError: a results file that is there cannot be used.
    """
    gallery, folder = draw(tier, results, configs), results / tier / "figures"
    paths = []
    for drawing in gallery.drawings:
        for ending, content in drawing.files.items():
            paths.append(folder / f"{drawing.name}.{ending}")
            write_atomic(paths[-1], content)
    for name, matrix in CASES.items():
        cases = read_cases(results / tier / f"{matrix}-cases.jsonl")
        if cases:
            paths.append(folder / f"{name}.md")
            lacks = missing_cases(load(matrix, tier, results, configs), cases)
            write_atomic(paths[-1], to_markdown(cases, labels(matrix, tier, configs), missing=lacks))
    paths.append(folder / INDEX)
    write_atomic(paths[-1], index(tier, gallery.drawings, gallery.missing))
    for ending in ("pdf", "png", "md"):
        for path in set(folder.glob(f"*.{ending}")) - set(paths):
            path.unlink()
    return paths


def labels(matrix: str, tier: str, configs: Path = CONFIGS) -> dict[str, str]:
    """What a matrix calls its arms."""
    found = read_matrix(matrix, configs, tier=tier)
    return {arm: found.label(arm) for arm in found.arms}


def index(tier: str, drawings: Sequence[Drawing], missing: Sequence[str]) -> str:
    """Markdown: every figure with caption and what it lacks."""
    lines = [f"# Figures, {tier} tier", "", "Generated by `make figures`; never edited by hand.", ""]
    for drawing in drawings:
        lines += [f"## {drawing.title} ({drawing.name})", ""]
        lines += [f"![{drawing.title}]({drawing.name}.png)", "", drawing.caption, ""]
        if drawing.name in CASES:
            lines += [f"All cases with their texts: [{drawing.name}.md]({drawing.name}.md).", ""]
        if drawing.stated:
            lines += ["Stated in the paper's text:", "", *(f"- {one}" for one in drawing.stated), ""]
        if drawing.missing:
            lines += ["Missing:", "", *(f"- {one}" for one in drawing.missing), ""]
    if missing:
        lines += ["## Not drawn", "", *(f"- {one}" for one in missing), ""]
    return "\n".join(lines)
