"""Tables as files: Markdown, LaTeX, and CSV in long and in wide form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lada.layers import CONFIGS
from lada.report.latex import to_latex
from lada.report.layout import AXES, Entry, Table
from lada.report.render import to_markdown
from lada.report.results import ROOT
from lada.report.tables import Built, build_all
from lada.rundir import write_atomic
from lada.tabular import write_csv

LONG = (
    "table",
    "tier",
    *AXES,
    "text",
    "seeds",
    "values",
    "mean",
    "std",
    "best_round",
    "mark",
    "unparsed",
    "truncated",
    "paper",
    "difference",
    "baseline",
    "won",
    "lost",
    "questions",
    "p",
    "p_holm",
    "interval_low",
    "interval_high",
)
ENDINGS = (".md", ".tex", "-long.csv", "-wide.csv")


def write_tables(
    tier: str, results: Path = ROOT / "results", configs: Path = CONFIGS
) -> tuple[Built, list[Path]]:
    """Build a tier's tables and write them to ``results/<tier>/tables``.

    Files of a table that can no longer be built are removed, so that none is older than its results.

    Returns:
        The tables, and the files that were written.

    Raises:
        ConfigError, DataError: see `lada.report.results.load`.
    """
    built, folder = build_all(tier, results, configs), results / tier / "tables"
    written = [path for table in built.tables for path in _write(table, tier, folder)]
    for name in built.missing:
        for ending in ENDINGS:
            (folder / f"{name}{ending}").unlink(missing_ok=True)
    return built, written


def _write(table: Table, tier: str, folder: Path) -> list[Path]:
    markdown, latex, long, wide = paths = [folder / f"{table.name}{ending}" for ending in ENDINGS]
    write_atomic(markdown, to_markdown(table))
    write_atomic(latex, to_latex(table))
    write_csv(long, LONG, long_rows(table, tier))
    header, *rows = wide_rows(table)
    write_csv(wide, header, rows)
    return paths


def long_rows(table: Table, tier: str) -> Iterator[list[str]]:
    """One row per cell, columns `LONG`: per cent, points; what is missing is empty, never zero.

    ``p`` is before, ``p_holm`` after correction; ``seeds`` and ``values`` are in the same order;
    ``best_round`` is the mean of each seed's best round, which the test questions chose.
    """
    for entry in table.entries.values():
        found = {"table": table.name, "tier": tier, **entry.cell, **_measured(entry), **_compared(entry)}
        yield [found.get(name, "") for name in LONG]


def _measured(entry: Entry) -> dict[str, str]:
    return {
        "text": entry.text or "",
        "seeds": " ".join(map(str, entry.seeds)),
        "values": " ".join(map(_number, entry.values)),
        "mean": _number(entry.mean),
        "std": _number(entry.std),
        "best_round": _number(entry.best_round),
        "mark": entry.mark or "",
        "unparsed": _number(entry.unparsed),
        "truncated": _number(entry.truncated),
        "paper": entry.paper_text or _number(entry.paper),
        "difference": _number(entry.difference),
    }


def _compared(entry: Entry) -> dict[str, str]:
    low, high = entry.interval or (None, None)
    found = {"p_holm": _number(entry.p), "interval_low": _number(low), "interval_high": _number(high)}
    one = entry.comparison
    if entry.baseline is not None:
        found["baseline"] = entry.baseline
    if one is not None:
        counts = {"won": str(one.won), "lost": str(one.lost), "questions": str(one.questions)}
        found |= {"p": _number(one.p), **counts}
    return found


def wide_rows(table: Table) -> Iterator[list[str]]:
    """A header, then the table's rows: for each column the mean (or text), the deviation, and the paper's."""
    names = [" ".join(table.label(part) for part in column if part) for column in table.columns]
    yield [*table.row_heads, *(f"{name}{part}" for name in names for part in ("", " std", " paper"))]
    for row in table.rows:
        cells = []
        for column in table.columns:
            entry = table.entries.get((row, column), Entry())
            cells += [entry.text or _number(entry.mean), _number(entry.std)]
            cells.append(entry.paper_text or _number(entry.paper))
        yield [*(table.label(part) for part in row), *cells]


def _number(value: float | None) -> str:
    """Six significant digits; nothing for what is missing."""
    return "" if value is None else f"{value:.6g}"
