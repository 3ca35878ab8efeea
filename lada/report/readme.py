"""Write the generated tables of README and results/STUDY.md: `make study-table`, after collecting the runs.

A table stands between ``<!-- name -->`` and ``<!-- end name -->``; what is there is replaced.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from lada.matrix.definition import of_one_place, read_matrix
from lada.matrix.rows import read_rows
from lada.report.study import accuracy_tables, contrast_table, diagnostics_table, grid_table
from lada.rundir import write_atomic

ROOT = Path(__file__).parents[2]
DATASETS = ("lab-math", "lab-cot")


def lab_models_table(weights: Path) -> str:
    """Markdown: the lab models' measured accuracies, from their manifests."""
    lines = [
        "| model | parameters | dataset | zero-shot, by scenario and party | one-shot minus zero-shot "
        "| no letter | bare letter | sub-questions | written questions well-formed | of these right |",
        "|" + "---|" * 10,
    ]
    for path in sorted(weights.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for dataset in DATASETS:
            lines.append(_model_line(manifest, dataset))
    return "\n".join(lines)


def _model_line(manifest: dict[str, Any], dataset: str) -> str:
    found = manifest["measured"][dataset]
    scenarios = ", ".join(
        f"{name}: {one['accuracy']:.1f} ± {one['error']:.1f}"
        for name, one in sorted(found["scenarios"].items())
    )
    writing = found.get("write", {})
    cells = [
        manifest["model"],
        f"{manifest['parameters'] / 1e6:.2f} M",
        dataset,
        scenarios,
        f"{found['one_shot']['accuracy'] - found['zero_shot']['accuracy']:+.1f}",
        f"{100 * found['zero_shot']['unparsed']:.1f}",
        f"{found['letter']['accuracy']:.1f}",
        f"{found['steps']['accuracy']:.1f}",
        *(_share(writing.get(key)) for key in ("well_formed", "right_answer")),
    ]
    return "| " + " | ".join(cells) + " |"


def _share(value: Any) -> str:
    return "-" if value is None else f"{value['accuracy']:.1f}"


def fill(text: str, tables: dict[str, str]) -> str:
    """A page with its tables replaced; what has no place there is left out."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)  # type: ignore[misc]  # mypy: default of a lambda
    return text


def tables(root: Path = ROOT) -> dict[str, str]:
    """Generated tables by name: ``lab-models``; ``<matrix>`` and more of shipped matrices with results."""
    found = {"lab-models": lab_models_table(root / "lada" / "lab" / "weights")}
    for path in sorted((root / "results" / "lab").glob("*.csv")):
        if not (root / "configs" / "matrices" / path.name).with_suffix(".yaml").is_file():
            continue  # one row per run, or a matrix from elsewhere
        matrix, rows = read_matrix(path.stem, root / "configs"), read_rows(path)
        if matrix.grid:
            if of_one_place(matrix):
                found[path.stem] = grid_table(matrix, rows).strip()
            continue
        found[path.stem] = accuracy_tables(matrix, rows).strip()
        found[f"{path.stem}-filters"] = diagnostics_table(matrix, rows).strip()
        if matrix.contrasts:
            found[f"{path.stem}-contrasts"] = contrast_table(matrix, rows).strip()
    return found


def main() -> int:
    """Rewrite both pages in place."""
    found = tables()
    for path in (ROOT / "README.md", ROOT / "results" / "STUDY.md"):
        write_atomic(path, fill(path.read_text(encoding="utf-8"), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
