"""The report: one page without network or script, complete, readable on a telephone; seen by a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pytest

from lada import convergence
from lada.errors import DataError
from lada.report import figures
from lada.report.html import REPORT, page, png_size, write_report
from tests.report.made_up import counts, row, write_results
from tests.report.test_cases import case, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 400)
PAGE = (297 - 2 * 12) * 96 / 25.4
"""A4, landscape, within the margins, in CSS pixels."""
ARMS = ("standalone", "fedkd", "fedmkt", "wasp", "lada")
MATRIX = {
    "scenarios": ["1", "2"],
    "datasets": ["lab-math"],
    "shots": [1, 0],
    "seeds": [0, 1],
    "arms": {arm: {"method": arm, "label": f"{arm} <b>&</b>"} for arm in ARMS},
    "contrasts": [["lada", arm] for arm in ARMS[:-1]],
}
MODELS = {
    "client-1": "google/gemma-2-2b",
    "client-2": "internlm/internlm3-8b-instruct",
    "server": "Qwen/Qwen3-32B",
}
POINTS = [
    convergence.Point(control.name, horizon, 0, horizon**-0.5)
    for control in convergence.CONTROLS
    for horizon in (4, 16, 64)
]


def write_all(folder: Path) -> tuple[Path, Path]:
    """Results of table2 with all that the report can show of it; scenario 2 has no runs."""
    rows = []
    for number, arm in enumerate(ARMS):
        for party, model in MODELS.items():
            for seed in (0, 1):
                place: dict[str, Any] = {"party": party, "model": model, "seed": seed}
                rows.append(row(arm, 0.3, round=0, **place))
                rows.append(row(arm, (150 + 10 * number) / 500, round=1, **place))
                rows += [
                    row(arm, 0.01, f"{kind}_rate", round=1, **place) for kind in ("unparsed", "truncated")
                ]
                rows.append(row(arm, 1000.0 * number, "bytes_sent/respond/all/responses", round=1, **place))
                if arm == "lada":
                    for rival, other in enumerate(ARMS[:-1]):
                        rows += counts("lada", other, 50 - 10 * rival, 10, 500, round=1, **place)
                    rows.append(row(arm, 200, "filter/server/pairs", round=1, **place))
                    rows.append(row(arm, 0.5, "filter/server/coverage", round=1, **place))
                    rows.append(row(arm, 0.5, "filter/server/reward_mean", round=1, **place))
    paths = write_results(folder, "table2", rows, matrix=MATRIX)
    convergence.write(POINTS, paths[0] / "convergence.csv")
    answers = case()["answers"]
    for answer, text in zip(answers, ("word " * 300, "<script>x</script>" + "long" * 400, ""), strict=True):
        answer |= {"text": text, "run_id": f"1-{answer['arm']}-lab-math-0shot-s0"}
    write(paths[0] / "lab" / "table2-cases.jsonl", case(answers=answers), case(id="q8"))
    return paths


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_all(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(results: tuple[Path, Path]) -> str:
    return page("lab", *results)


def test_the_page_is_written_and_is_the_same_again(results: tuple[Path, Path], html: str) -> None:
    path = write_report("lab", *results)
    assert path == results[0] / "lab" / REPORT
    assert path.read_text(encoding="utf-8") == html


def test_every_table_figure_case_and_run_is_there(html: str) -> None:
    for name in ("table1", "table2", "table2-unparsed", "table2-truncated"):
        assert f'<table id="{name}"' in html
    for name in ("fig4", "fig5", "pareto", "diagnostics", "convergence"):
        assert f'<figure id="{name}">' in html
        assert f'href="#{name}"' in html
    assert html.count('<details class="case"') == 2
    assert "no letter, counted as wrong" in html
    for arm in ARMS:
        assert f'id="run-1-{arm}-lab-math-0shot-s0"' in html
    assert 'href="#run-1-lada-lab-math-0shot-s0"' in html
    assert '<code class="quiet">run-l</code>' in html, "a run that is in no list has nothing to link to"
    assert "<code>c0ffee</code>" in html, "the commit"


def test_what_is_missing_is_listed(html: str) -> None:
    missing = html[html.index('<section id="missing">') : html.index('<section id="runs">')]
    for name in ("table3", "table4", "table5", "table6", "fig2"):
        assert f"<li>{name}:" in missing
    assert "fig4:" not in missing
    assert "scenario 2, zero-shot: no finished run" in html


def test_the_page_needs_no_network_and_no_script(html: str) -> None:
    assert not re.search(r"<(script|link|iframe|object)", html)
    assert not re.search(r"""(src|href)=["'](?!#|data:image/png;base64,)""", html)
    assert not re.search(r"url\(|@import", html)


def test_labels_and_texts_are_shown_not_obeyed(html: str) -> None:
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    assert "lada &lt;b&gt;&amp;&lt;/b&gt;" in html
    assert "<b>" not in html


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_a_run_of_two_matrices_has_one_anchor(results: tuple[Path, Path], tmp_path: Path) -> None:
    folder, configs = tmp_path / "results", results[1]
    shutil.copytree(results[0], folder)
    shutil.copy(folder / "lab" / "table2-runs.csv", folder / "lab" / "more-runs.csv")
    html = page("lab", folder, configs)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert 'id="runs-more"' in html


def test_a_list_of_runs_without_ids_is_refused(results: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / "lab").mkdir(parents=True)
    (folder / "lab" / "x-runs.csv").write_text("arm,git\nlada,c0ffee\n")
    with pytest.raises(DataError, match=r"x-runs\.csv: no column run_id"):
        page("lab", folder, results[1])


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    html = page("lab", tmp_path)
    assert "None can be drawn yet." in html
    assert "No results of this tier have been collected yet." in html
    assert '<table id="table1">' in html, "Table I is configuration"


def test_a_list_of_runs_that_is_no_text_is_refused(results: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "x-runs.csv").write_bytes(b"run_id\n\xff\n")
    with pytest.raises(DataError, match=r"x-runs\.csv, line 2: no text"):
        page("lab", tmp_path, results[1])


# -- in a browser

MEASURE = """
<!doctype html><meta charset="utf-8"><body>
{frames}
<script>
window.onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    for (const one of page.querySelectorAll("details")) one.open = true;
    const inBox = one => one.closest(".scroll") !== null && !one.matches(".scroll");
    const boxes = [...page.querySelectorAll(".scroll")].filter(box => box.querySelector("table[id]"));
    const named = of => of.map(box => box.querySelector("table").id);
    const cut = named(boxes.filter(box => box.scrollWidth > box.clientWidth));
    for (const box of boxes) box.scrollLeft = 10000;
    const headless = named(boxes.filter(box => [...box.querySelectorAll("tbody th[scope=row]")].some(
      head => head.getBoundingClientRect().left < box.getBoundingClientRect().left - 1)));
    const seen = {{
      cut, headless,
      client: root.clientWidth, scroll: root.scrollWidth,
      wide: [...page.body.querySelectorAll("*")].filter(one => !inBox(one))
        .filter(one => one.getBoundingClientRect().right > root.clientWidth + 1)
        .map(one => one.tagName + "#" + one.id + "." + one.className).slice(0, 5),
      images: [...page.images].map(one => [one.naturalWidth, one.getBoundingClientRect().width]),
      tables: [...page.querySelectorAll("table[id]")].filter(one => one.offsetHeight > 0).map(one => one.id),
      figures: [...page.querySelectorAll("figure")].filter(one => one.offsetHeight > 0).map(one => one.id),
    }};
    const print = [...page.styleSheets[0]?.cssRules ?? []].filter(one => one.media?.mediaText === "print");
    const style = page.createElement("style");
    style.textContent = print.flatMap(media => [...media.cssRules].map(rule => rule.cssText)).join(" ");
    page.head.append(style);
    const scrolls = box => page.defaultView.getComputedStyle(box).overflowX !== "visible";
    seen.unprinted = named(boxes.filter(scrolls));
    seen.printed = Math.max(0, ...boxes.map(box => box.querySelector("table").offsetWidth));
    return seen;
  }});
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}};
</script>
"""


def measured(content: str, folder: Path, widths: Sequence[int] = WIDTHS) -> list[dict[str, Any]]:
    """What a browser makes of a page in windows of these widths, everything on it opened."""
    assert CHROMIUM is not None
    frames = "\n".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(content)}"></iframe>'
        for width in widths
    )
    path = folder / "measure.html"
    path.write_text(MEASURE.format(frames=frames), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command = [CHROMIUM, *options, f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    values: list[dict[str, Any]] = json.loads(found[1].replace("&lt;", "<").replace("&amp;", "&"))
    return values


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; CI installs it")


@needs_browser
def test_a_page_that_is_too_wide_is_seen(tmp_path: Path) -> None:
    (found,) = measured('<body><div id="far" style="width:700px">x</div>', tmp_path, (400,))
    assert found["scroll"] > found["client"]
    assert "DIV#far." in found["wide"]


@needs_browser
def test_in_a_browser_everything_is_there_and_nothing_overflows(
    results: tuple[Path, Path], html: str, tmp_path: Path
) -> None:
    gallery = figures.draw("lab", *results)
    for width, found in zip(WIDTHS, measured(html, tmp_path), strict=True):
        assert width - 20 <= found["client"] <= width
        assert found["scroll"] <= found["client"], f"{width} px: {found['wide']}"
        assert found["wide"] == [], f"{width} px"
        assert {"table1", "table2", "table2-unparsed", "table2-truncated"} <= set(found["tables"])
        assert found["cut"] == [] or width < 1000, "tables are seen whole"
        assert found["cut"] != [] or width > 1000
        assert found["headless"] == [], f"{width} px: headers of rows stay in sight"
        assert found["unprinted"] == [] and found["printed"] < PAGE, "paper does not scroll"
        assert found["figures"] == [drawing.name for drawing in gallery.drawings]
        drawn = [png_size(drawing.files["png"])[0] for drawing in gallery.drawings]
        assert [natural for natural, _ in found["images"]] == drawn, "every image is decoded"
        assert all(540 < shown <= max(width, 560) for _, shown in found["images"]), (
            "legible: scrolls in a box of its own"
        )
