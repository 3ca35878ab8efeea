"""Tables as HTML, Markdown, LaTeX and CSV: the signs of each, headers that span, and files that compile."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lada.errors import ConfigError
from lada.report.export import ENDINGS, LONG, write_tables
from lada.report.latex import escape, to_latex
from lada.report.layout import Comparison, Entry, Table, letter
from lada.report.render import number, to_html, to_markdown
from tests.report.made_up import counts, row, write_results

TABLE = Table(
    name="table2",
    title="Table II: made up & small",
    row_heads=("Scenario", "Party"),
    rows=(("scenario 1", "client-1"), ("scenario 1", "server"), ("scenario 2", "client-1")),
    columns=(("one-shot", "fedkd"), ("one-shot", "lada"), ("zero-shot", "lada")),
    entries={
        (("scenario 1", "client-1"), ("one-shot", "fedkd")): Entry(50.04, 1.26, (0, 1), 48.0, "second"),
        (("scenario 1", "client-1"), ("one-shot", "lada")): Entry(
            60.0, None, (0,), None, "best", notes=(0, 1)
        ),
        (("scenario 1", "server"), ("one-shot", "fedkd")): Entry(paper=42.7),
        (("scenario 1", "server"), ("one-shot", "lada")): Entry(),
        (("scenario 2", "client-1"), ("zero-shot", "lada")): Entry(
            -1.25, 0.5, (0, 1), 0.4, None, 0.0004, (-2.0, -0.51), signed=True, baseline="fedkd"
        ),
    },
    labels={"fedkd": "fedkd <letter>", "lada": "lada | 50 %", "one-shot": "One-shot"},
    footnotes=("One seed.", "A & b."),
    remarks=("Bold: best.",),
    tests=7,
    missing=("scenario 2: no run",),
)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (1.25, True, "+1.2"),
        (-1.26, True, "−1.3"),
        (-0.04, True, "0.0"),
        (0.04, False, "0.0"),
        (-3.0, False, "−3.0"),
    ],
)
def test_numbers_have_one_decimal_and_no_sign_at_zero(value: float, signed: bool, text: str) -> None:
    assert number(value, signed=signed) == text


def test_footnote_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 25, 26, 27, 51, 52)] == ["a", "z", "aa", "ab", "az", "ba"]


def test_markdown_has_a_table_for_each_group_of_columns() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "## Table II: made up & small"
    assert "| Scenario | Party | fedkd <letter> | lada \\| 50 % |" in lines
    first = "| scenario 1 | client-1 | *50.0* ± 1.3 [48.0, +2.0] | **60.0**<sup>a, b</sup> |"
    assert lines[lines.index("**One-shot**") + 4] == first
    assert "|  | server | – [42.7] | – |" in lines, "an outer header stands once; what is missing is no zero"
    assert (
        "| scenario 2 | client-1 | −1.2 ± 0.5 over fedkd <letter> (−2.0 to −0.5; p < 0.001) [+0.4, −1.6] |"
        in lines
    )
    assert any(line.startswith("In parentheses") and "over the 7 tests" in line for line in lines)
    assert lines[-3:] == ["Missing:", "", "- scenario 2: no run"]
    assert "<sup>b</sup> A & b." in lines


class Collector(HTMLParser):
    """All tags with their attributes, and the text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_balanced_and_headers_have_scopes() -> None:
    found = Collector()
    found.feed(to_html(TABLE))
    assert found.open == []
    heads = [attributes for tag, attributes in found.tags if tag == "th"]
    assert all("scope" in one for one in heads)
    assert {"scope": "rowgroup", "rowspan": "2"} in heads and ("caption", {}) in found.tags
    tables = [attributes for tag, attributes in found.tags if tag == "table"]
    assert tables == [{"id": name, "class": "nested"} for name in ("table2", "table2-zero-shot")], "stacked"
    assert [tag for tag, _ in found.tags].count("tr") == (1 + 2) + (1 + 1), (
        "rows without entries are left out"
    )
    assert [tag for tag, _ in found.tags].count("td") == 2 * 2 + 1
    text = "".join(found.text)
    assert "fedkd <letter>" in text and "Table II: made up & small" in text, "escaped once"
    html = to_html(TABLE)
    assert "<td><strong>60.0</strong><sup>a, b</sup></td>" in html
    assert '<em>50.0</em> <span class="std">± 1.3</span> <span class="paper">[48.0, +2.0]</span>' in html
    assert '<span class="over">over fedkd &lt;letter&gt;</span>' in html and "over the 7 tests" in html
    assert '<span class="test">(−2.0 to −0.5; p &lt; 0.001)</span>' in html
    assert "<td>–</td>" in html


def test_blocks_follow_their_table() -> None:
    block = Table("table2-unparsed", "Rates", TABLE.row_heads, (), (("", "lada"),), {})
    table = Table(**{**TABLE.__dict__, "blocks": (block,)})
    assert to_html(table).index('id="table2-unparsed"') > to_html(table).index('id="table2"')
    assert "### Rates" in to_markdown(table)
    assert "tab:table2-unparsed" in to_latex(table)


def test_latex_escapes_and_every_row_has_all_its_columns() -> None:
    assert escape("a_b & 50 % <x> ± −1 α {y} \\") == (
        r"a\_b \& 50 \% $<$x$>$ $\pm$ $-$1 $\alpha$ \{y\} \textbackslash{}"
    )
    assert escape("[addition]*, é") == "{[}addition{]}{*}, é", "a row may begin with it"
    with pytest.raises(ConfigError, match="'5 €': no LaTeX is known for '€'"):
        escape("5 €")
    text = to_latex(TABLE)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {4}
    assert r"\textit{50.0}$_{\pm 1.3}$" in text and r"\textbf{60.0}\textsuperscript{a,b}" in text
    assert r"$-$1.2$_{\pm 0.5}$\textsuperscript{***1}" in text
    assert r"\multicolumn{2}{c}{One-shot}" in text and r"\cmidrule(lr){3-4}\cmidrule(lr){5-5}" in text
    assert "that an improvement is over: 1 fedkd $<$letter$>$." in text
    assert "In parentheses" not in text and "Holm-corrected over the 7 tests" in text, "stars alone are there"
    assert r"{\tiny {[}48.0, $+$2.0{]}}" in text
    assert r"\caption{Made up \& small}" in text


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Made-up results of Table II with a rate, tests, and a missing arm, written as tables."""
    arms = {name: {"method": name} for name in ("standalone", "fedkd", "lada")}
    matrix = {"scenarios": ["1", "2"], "shots": [1, 0], "seeds": [0, 1], "arms": arms}
    rows = []
    for party in ("client-1", "server"):
        for seed in (0, 1):
            place = {"party": party, "seed": seed, "shots": 1}
            rows += [row("fedkd", 0.5, **place), row("lada", 0.65, **place)]
            rows += counts("lada", "fedkd", 20, 5, 100, **place)
            rows.append(row("lada", 0.1, "unparsed_rate", **place))
    results, configs = write_results(tmp_path, "table2", rows, matrix=matrix)
    write_tables("lab", results, configs)
    return results / "lab" / "tables"


def test_long_csv_has_every_cell_and_wide_csv_every_row(written: Path) -> None:
    with (written / "table2-long.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert tuple(cells[0]) == LONG and len(cells) == 2 * 2 * 4 * 4
    by_place = {(one["scenario"], one["shots"], one["party"], one["arm"]): one for one in cells}
    lada = by_place["1", "1", "client-1", "lada"]
    wanted = {"mean": "65", "std": "0", "seeds": "0 1", "values": "65 65", "mark": "best", "unparsed": "10"}
    assert {name: lada[name] for name in wanted} == wanted
    assert (lada["paper"], lada["difference"], lada["best_round"]) == ("25.8", "39.2", "65")
    gain = by_place["1", "1", "client-1", "improvement"]
    assert (gain["baseline"], gain["won"], gain["lost"], gain["questions"]) == ("fedkd", "40", "10", "200")
    assert float(gain["p_holm"]) == pytest.approx(2 * float(gain["p"]), rel=1e-4), "six digits are written"
    assert 0 < float(gain["interval_low"]) < float(gain["mean"]) < float(gain["interval_high"])
    missing = by_place["2", "0", "server", "standalone"]
    assert missing["mean"] == missing["std"] == missing["seeds"] == "" and missing["paper"] == "50.5"
    with (written / "table2-wide.csv").open(newline="") as file:
        wide = list(csv.reader(file))
    assert len(wide) == 1 + 2 * 4 and {len(line) for line in wide} == {2 + 3 * 2 * 4}
    assert wide[0][:5] == [
        "Scenario",
        "Party",
        "One-shot standalone",
        "One-shot standalone std",
        "One-shot standalone paper",
    ]
    assert wide[1][:8] == ["Scenario 1", "client-1", "", "", "22", "50", "0", "19.8"]


def test_the_same_results_give_the_same_bytes_and_no_table_is_older_than_its_results(
    tmp_path: Path, written: Path
) -> None:
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    assert sorted(before) == sorted(f"{name}{ending}" for name in ("table1", "table2") for ending in ENDINGS)
    results, configs = tmp_path / "results", tmp_path / "configs"
    write_tables("lab", results, configs)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    (results / "lab" / "table2.csv").unlink()
    built, _ = write_tables("lab", results, configs)
    assert "table2" in built.missing
    assert {path.name for path in written.iterdir()} == {f"table1{ending}" for ending in ENDINGS}


def test_latex_compiles(tmp_path: Path, written: Path) -> None:
    if shutil.which("pdflatex") is None or not _has_booktabs():
        pytest.skip("no pdflatex with booktabs on this machine (Debian: texlive-latex-recommended)")
    (tmp_path / "small.tex").write_text(to_latex(TABLE))
    inputs = [*(written / f"table{place}.tex" for place in (1, 2)), tmp_path / "small.tex"]
    lines = [f"\\input{{{path}}}" for path in inputs]
    packages = r"\usepackage[margin=0.75in]{geometry}\usepackage{booktabs}"
    text = "\n".join(
        [r"\documentclass[twocolumn]{article}", packages, r"\begin{document}", *lines, r"\end{document}"]
    )
    (tmp_path / "all.tex").write_text(text)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert "Overfull" not in said and "too large" not in said, "nothing runs off the page"


def _has_booktabs() -> bool:
    found = subprocess.run(["kpsewhich", "booktabs.sty", "geometry.sty"], capture_output=True, check=False)
    return len(found.stdout.split()) == 2


def test_a_comparison_is_what_the_long_csv_says_it_is() -> None:
    assert {"won", "lost", "questions", "p", "baseline"} <= set(LONG) & set(Comparison.__dataclass_fields__)
