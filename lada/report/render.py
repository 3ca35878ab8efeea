"""Tables as HTML and as Markdown. What stands in a cell is said once, here; LaTeX takes it over.

Where columns have two levels, each group of columns is a table of its own, one below the other: Markdown has
one row of headers, and side by side they are wider than a screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from lada.report.layout import Entry, Key, Table, letter

MISSING = "–"
TESTED = (
    "In parentheses the 95 % bootstrap interval over test questions, and p of McNemar's exact test over the "
    "questions of all seeds, Holm-corrected over the {tests} tests of this table."
)
MINUS = "−"


def number(value: float, *, signed: bool = False) -> str:
    """One decimal, a typographic minus, no sign at zero."""
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    if float(text) == 0:
        return "0.0"
    return text.replace("-", MINUS)


def value_text(entry: Entry) -> str:
    """The measured value alone."""
    if entry.text is not None:
        return entry.text
    return MISSING if entry.mean is None else number(entry.mean, signed=entry.signed)


def std_text(entry: Entry) -> str:
    """The deviation over seeds, or nothing."""
    return "" if entry.std is None or entry.mean is None else f"± {number(entry.std)}"


def paper_text(entry: Entry) -> str:
    """What the paper prints and, where both are numbers, the measured value minus it, in brackets."""
    if entry.paper is None:
        return f"[{entry.paper_text}]" if entry.paper_text else ""
    printed = number(entry.paper, signed=entry.signed)
    gap = "" if entry.difference is None else f", {number(entry.difference, signed=True)}"
    return f"[{printed}{gap}]"


def test_text(entry: Entry) -> str:
    """Interval and p-value of a difference, in parentheses, or nothing."""
    parts = []
    if entry.interval is not None:
        low, high = (number(one, signed=True) for one in entry.interval)
        parts.append(f"{low} to {high}")
    if entry.p is not None:
        parts.append("p < 0.001" if entry.p < 0.0005 else f"p = {entry.p:.3f}")
    return f"({'; '.join(parts)})" if parts else ""


def over_text(table: Table, entry: Entry) -> str:
    """The arm that a difference is over, or nothing."""
    return "" if entry.baseline is None else f"over {table.label(entry.baseline)}"


def remarks(table: Table) -> list[str]:
    """Of the whole table, what the signs of a test mean among them."""
    return [*table.remarks, *([TESTED.format(tests=table.tests)] if table.tests else [])]


def shown_part(row: Key, before: Key) -> list[str]:
    """Headers of a row, without outer ones that the row before it shows already."""
    outer = ["" if row[: level + 1] == before[: level + 1] else part for level, part in enumerate(row[:-1])]
    return [*outer, row[-1]]


# -- HTML


def to_html(table: Table) -> str:
    """A fragment: each group of columns in ``div.scroll``, the notes in ``div.notes``, then the blocks.

    The first group's id is the table's name, the others' have the group's name behind it; every header has a
    scope; best and second are ``strong`` and ``em``, the paper's value ``span.paper``, what a difference is
    over ``span.over``, a test ``span.test``.
    """
    panels = [part for group in enumerate(table.groups()) for part in _html_panel(table, *group)]
    return "\n".join([*panels, *_html_notes(table), *(to_html(block) for block in table.blocks)])


def _html_panel(table: Table, place: int, group: tuple[str, tuple[Key, ...]]) -> Iterator[str]:
    outer, columns = group
    rows = [row for row in table.rows if any((row, column) in table.entries for column in columns)]
    title = table.title if place == 0 else table.title.partition(":")[0]
    caption = f"{title}; {table.label(outer).lower()}" if outer else title
    slug = f"{table.name}-{outer.replace(' ', '-')}" if place else table.name
    nested = ' class="nested"' if len(table.row_heads) > 1 else ""
    region = f'tabindex="0" role="region" aria-label="{escape(caption)}"'
    yield f'<div class="scroll" {region}><table id="{escape(slug)}"{nested}>'
    yield f"<caption><span>{escape(caption)}</span></caption>"
    names = [*table.row_heads, *(table.label(column[-1]) for column in columns)]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for number, row in enumerate(rows):
        above = "".join(_html_row_heads(table, rows, number))
        cells = "".join(_html_cell(table, table.entries.get((row, column))) for column in columns)
        yield f"<tr>{above}{cells}</tr>"
    yield "</tbody></table></div>"


def _html_row_heads(table: Table, rows: Sequence[Key], place: int) -> Iterator[str]:
    """Outer headers span the rows that share them."""
    row = rows[place]
    for level, part in enumerate(row):
        shared = row[: level + 1]
        if level < len(row) - 1:
            if place and rows[place - 1][: level + 1] == shared:
                continue
            span = sum(1 for other in rows if other[: level + 1] == shared)
            yield f'<th scope="rowgroup" rowspan="{span}">{escape(table.label(part))}</th>'
        else:
            yield f'<th scope="row">{escape(table.label(part))}</th>'


def _html_cell(table: Table, entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    value = escape(value_text(entry))
    tag = {"best": "strong", "second": "em", None: ""}[entry.mark]
    parts = [f"<{tag}>{value}</{tag}>" if tag else value]
    if std_text(entry):
        parts.append(f' <span class="std">{escape(std_text(entry))}</span>')
    if entry.notes:
        parts.append(f"<sup>{', '.join(letter(note) for note in entry.notes)}</sup>")
    below = {"over": over_text(table, entry), "test": test_text(entry), "paper": paper_text(entry)}
    for kind, text in below.items():
        if text:
            parts.append(f' <span class="{kind}">{escape(text)}</span>')
    return f"<td>{''.join(parts)}</td>"


def _html_notes(table: Table) -> Iterator[str]:
    yield '<div class="notes">'
    yield from (f"<p>{escape(remark)}</p>" for remark in remarks(table))
    for index, note in enumerate(table.footnotes):
        yield f"<p><sup>{letter(index)}</sup> {escape(note)}</p>"
    if table.missing:
        items = "".join(f"<li>{escape(one)}</li>" for one in table.missing)
        yield f'<p>Missing:</p><ul class="missing">{items}</ul>'
    yield "</div>"


# -- Markdown


def to_markdown(table: Table) -> str:
    """A heading, then a table for each group of columns."""
    lines = [f"## {table.title}", ""]
    for outer, columns in table.groups():
        lines += [f"**{table.label(outer)}**", ""] if outer else []
        lines += [*_markdown_rows(table, columns), ""]
    lines += [f"{remark}\n" for remark in remarks(table)]
    lines += [f"<sup>{letter(index)}</sup> {note}\n" for index, note in enumerate(table.footnotes)]
    if table.missing:
        lines += ["Missing:", "", *(f"- {one}" for one in table.missing), ""]
    text = "\n".join(lines)
    return "\n".join([text, *(to_markdown(block).replace("## ", "### ", 1) for block in table.blocks)])


def _markdown_rows(table: Table, columns: tuple[Key, ...]) -> Iterator[str]:
    heads = [*table.row_heads, *(table.label(column[-1]) for column in columns)]
    yield _markdown_line(heads)
    yield "|" + "---|" * len(table.row_heads) + "---:|" * len(columns)
    before: Key = ()
    for row in table.rows:
        entries = [table.entries.get((row, column)) for column in columns]
        heads = [table.label(part) if part else "" for part in shown_part(row, before)]
        if any(entry is not None for entry in entries):
            yield _markdown_line([*heads, *(_markdown_cell(table, entry) for entry in entries)])
            before = row


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_cell(table: Table, entry: Entry | None) -> str:
    if entry is None:
        return ""
    around = {"best": "**", "second": "*", None: ""}[entry.mark]
    parts = [f"{around}{value_text(entry)}{around}"]
    if entry.notes:
        parts[0] += f"<sup>{', '.join(letter(note) for note in entry.notes)}</sup>"
    texts = (std_text(entry), over_text(table, entry), test_text(entry), paper_text(entry))
    parts += [text for text in texts if text]
    return " ".join(parts)
