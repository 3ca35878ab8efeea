"""Tables as LaTeX: booktabs alone is needed; compiles with pdflatex, in one or two columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lada.errors import ConfigError
from lada.report.layout import Entry, Key, Table, letter
from lada.report.render import number, paper_text, shown_part, value_text

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"${sign}$" for sign in "<>|+="},
    **{sign: f"{{{sign}}}" for sign in "[]*"},
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "…": r"\ldots{}",
}
LATIN_END = "\u0180"
"""Letters before it are known to every pdflatex."""
WIDEST = 8
"""Columns that stand side by side on a page."""
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
STARS_NOTE = (
    "Stars: p below 0.05, 0.01, 0.001 of McNemar's exact test over the questions of all seeds, "
    "Holm-corrected over the {tests} tests of this table; intervals and p-values are in the CSV files."
)


def escape(text: str) -> str:
    """Plain text for LaTeX's text mode.

    Raises:
        ConfigError: a label has a sign at which pdflatex would stop.
    """
    for sign in text:
        if sign not in SPECIAL and not sign.isascii() and not (sign.isalpha() and sign < LATIN_END):
            raise ConfigError(f"'{text}': no LaTeX is known for '{sign}'")
    return "".join(SPECIAL.get(sign, sign) for sign in text)


def to_latex(table: Table) -> str:
    """A ``table*`` with caption, label ``tab:<name>`` and notes; blocks follow as tables of their own."""
    parts = [
        f"% {table.name}: generated; needs \\usepackage{{booktabs}}",
        r"\begin{table*}[tp]",
        r"\centering",
        f"\\caption{{{escape(_untitled(table.title))}}}",
        f"\\label{{tab:{table.name}}}",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{2pt}\renewcommand{\arraystretch}{0.78}",
        *_panels(table),
        *_notes(table),
        r"\end{table*}",
    ]
    return "\n".join([*parts, "", *(to_latex(block) for block in table.blocks)])


def _untitled(title: str) -> str:
    """Without the paper's number: LaTeX counts tables itself."""
    text = title.partition(": ")[2]
    return text[:1].upper() + text[1:]


def _panels(table: Table) -> Iterator[str]:
    """One tabular, or one below the other for each group of columns where together they are too wide."""
    groups = table.groups()
    panels = [table.columns] if len(table.columns) <= WIDEST else [columns for _, columns in groups]
    for place, columns in enumerate(panels):
        if place:
            yield r"\par\medskip"
        yield from _tabular(table, columns)


def _tabular(table: Table, columns: Sequence[Key]) -> Iterator[str]:
    alignment = "l" if any(entry.text is not None for entry in table.entries.values()) else "r"
    yield f"\\begin{{tabular}}{{{'l' * len(table.row_heads)}{alignment * len(columns)}}}"
    yield r"\toprule"
    yield from _head(table, columns)
    yield r"\midrule"
    before: Key = ()
    for row in table.rows:
        entries = [table.entries.get((row, column)) for column in columns]
        if all(entry is None for entry in entries):
            continue
        if before and len(row) > 1 and row[0] != before[0]:
            yield r"\addlinespace"
        yield from _row(
            table, [table.label(part) if part else "" for part in shown_part(row, before)], entries
        )
        before = row
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _head(table: Table, columns: Sequence[Key]) -> Iterator[str]:
    first = len(table.row_heads)
    outer = [column[0] for column in columns]
    if any(outer):
        spans, rules = [], []
        for part in dict.fromkeys(outer):
            width, place = outer.count(part), first + outer.index(part) + 1
            spans.append(f"\\multicolumn{{{width}}}{{c}}{{{escape(table.label(part))}}}")
            rules.append(f"\\cmidrule(lr){{{place}-{place + width - 1}}}")
        yield _line([*[""] * first, *spans])
        yield "".join(rules)
    inner = [table.label(column[-1]) for column in columns]
    yield _line([escape(head) for head in (*table.row_heads, *inner)])


def _row(table: Table, heads: Sequence[str], entries: Sequence[Entry | None]) -> Iterator[str]:
    """Measured values, and below them in smaller print what the paper has there, if it has anything."""
    yield _line([*map(escape, heads), *(_measured(table, entry) for entry in entries)])
    printed = ["" if entry is None else paper_text(entry) for entry in entries]
    if any(printed):
        small = [f"{{\\tiny {escape(text)}}}" if text else "" for text in printed]
        yield _line([*[""] * len(heads), *small])


def _baselines(table: Table) -> list[str]:
    """Arms that differences are over. Their places, from 1, stand for them: names are too wide."""
    return sorted({entry.baseline for entry in table.entries.values() if entry.baseline is not None})


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _measured(table: Table, entry: Entry | None) -> str:
    if entry is None:
        return ""
    command = {"best": r"\textbf", "second": r"\textit", None: ""}[entry.mark]
    value = escape(value_text(entry))
    parts = [f"{command}{{{value}}}" if command else value]
    if entry.mean is not None and entry.std is not None:
        parts.append(f"$_{{\\pm {number(entry.std)}}}$")
    over = "" if entry.baseline is None else str(_baselines(table).index(entry.baseline) + 1)
    signs = [over, *(letter(note) for note in entry.notes)]
    above = _stars(entry.p) + ",".join(sign for sign in signs if sign)
    return "".join([*parts, f"\\textsuperscript{{{above}}}" if above else ""])


def _stars(p: float | None) -> str:
    return next((stars for limit, stars in STARS if p is not None and p < limit), "")


def _notes(table: Table) -> Iterator[str]:
    found = [escape(text) for text in table.remarks]
    if names := _baselines(table):
        places = "; ".join(f"{place} {table.label(name)}" for place, name in enumerate(names, start=1))
        found.append(escape(f"Digits: the other method that an improvement is over: {places}."))
    if table.tests:
        found.append(escape(STARS_NOTE.format(tests=table.tests)))
    found += [
        f"\\textsuperscript{{{letter(index)}}}~{escape(text)}" for index, text in enumerate(table.footnotes)
    ]
    if table.missing:
        found.append(escape(f"Missing: {'; '.join(table.missing)}."))
    if found:
        text = re.sub(r"\s+", " ", " ".join(found))
        yield f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\tiny {text}}}"
