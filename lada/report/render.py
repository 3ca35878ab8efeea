"""Tables as HTML and as Markdown. What stands in a cell is said once, here; LaTeX takes it over."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from lada.report.layout import Entry, Key, Table, letter

MISSING = "–"
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


def shown_part(row: Key, before: Key) -> list[str]:
    """Headers of a row, without outer ones that the row before it shows already."""
    outer = ["" if row[: level + 1] == before[: level + 1] else part for level, part in enumerate(row[:-1])]
    return [*outer, row[-1]]


# -- HTML


def to_html(table: Table) -> str:
    """A fragment: the table in ``div.scroll``, its notes in ``div.notes``, then its blocks likewise.

    The table's id is its name; every header has a scope; best and second are ``strong`` and ``em``, the
    paper's value ``span.paper``, a test ``span.test``.
    """
    parts = [f'<div class="scroll"><table id="{escape(table.name)}">']
    parts += [
        f"<caption>{escape(table.title)}</caption>",
        "<thead>",
        *_html_head(table),
        "</thead>",
        "<tbody>",
    ]
    parts += [*_html_body(table), "</tbody>", "</table></div>", *_html_notes(table)]
    parts += [to_html(block) for block in table.blocks]
    return "\n".join(parts)


def _html_head(table: Table) -> Iterator[str]:
    groups = table.groups()
    is_grouped = any(outer for outer, _ in groups)
    depth = 2 if is_grouped else 1
    corner = "".join(f'<th scope="col" rowspan="{depth}">{escape(head)}</th>' for head in table.row_heads)
    inner = "".join(f'<th scope="col">{escape(table.label(column[-1]))}</th>' for column in table.columns)
    if not is_grouped:
        yield f"<tr>{corner}{inner}</tr>"
        return
    outer = "".join(
        f'<th scope="colgroup" colspan="{len(columns)}">{escape(table.label(name))}</th>'
        for name, columns in groups
    )
    yield f"<tr>{corner}{outer}</tr>"
    yield f"<tr>{inner}</tr>"


def _html_body(table: Table) -> Iterator[str]:
    for place, row in enumerate(table.rows):
        heads = "".join(_html_row_heads(table, place, row))
        cells = "".join(_html_cell(table.entries.get((row, column))) for column in table.columns)
        yield f"<tr>{heads}{cells}</tr>"


def _html_row_heads(table: Table, place: int, row: Key) -> Iterator[str]:
    """Outer headers span the rows that share them."""
    for level, part in enumerate(row):
        shared = row[: level + 1]
        if level < len(row) - 1:
            if place and table.rows[place - 1][: level + 1] == shared:
                continue
            span = sum(1 for other in table.rows if other[: level + 1] == shared)
            yield f'<th scope="rowgroup" rowspan="{span}">{escape(table.label(part))}</th>'
        else:
            yield f'<th scope="row">{escape(table.label(part))}</th>'


def _html_cell(entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    value = escape(value_text(entry))
    tag = {"best": "strong", "second": "em", None: ""}[entry.mark]
    parts = [f"<{tag}>{value}</{tag}>" if tag else value]
    if std_text(entry):
        parts.append(f' <span class="std">{escape(std_text(entry))}</span>')
    if entry.notes:
        parts.append(f"<sup>{', '.join(letter(note) for note in entry.notes)}</sup>")
    for kind, text in (("test", test_text(entry)), ("paper", paper_text(entry))):
        if text:
            parts.append(f' <span class="{kind}">{escape(text)}</span>')
    return f"<td>{''.join(parts)}</td>"


def _html_notes(table: Table) -> Iterator[str]:
    yield '<div class="notes">'
    yield from (f"<p>{escape(remark)}</p>" for remark in table.remarks)
    for index, note in enumerate(table.footnotes):
        yield f"<p><sup>{letter(index)}</sup> {escape(note)}</p>"
    if table.missing:
        items = "".join(f"<li>{escape(one)}</li>" for one in table.missing)
        yield f'<p>Missing:</p><ul class="missing">{items}</ul>'
    yield "</div>"


# -- Markdown


def to_markdown(table: Table) -> str:
    """A heading, then a table for each group of columns, since Markdown has one row of headers."""
    lines = [f"## {table.title}", ""]
    for outer, columns in table.groups():
        lines += [f"**{table.label(outer)}**", ""] if outer else []
        lines += [*_markdown_rows(table, columns), ""]
    lines += [f"{remark}\n" for remark in table.remarks]
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
            yield _markdown_line([*heads, *(_markdown_cell(entry) for entry in entries)])
            before = row


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_cell(entry: Entry | None) -> str:
    if entry is None:
        return ""
    around = {"best": "**", "second": "*", None: ""}[entry.mark]
    parts = [f"{around}{value_text(entry)}{around}"]
    if entry.notes:
        parts[0] += f"<sup>{', '.join(letter(note) for note in entry.notes)}</sup>"
    parts += [text for text in (std_text(entry), test_text(entry), paper_text(entry)) if text]
    return " ".join(parts)
