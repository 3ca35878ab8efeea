"""Figures from made-up rows with known answers: what is drawn, what is missing, and the files themselves."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from lada import convergence
from lada.errors import DataError
from lada.layers import CONFIGS
from lada.matrix.definition import Arm, Matrix, read_matrix
from lada.matrix.rows import Row
from lada.report import bars, case_figure, curves, filters, gap, pareto, strips, theory
from lada.report.byte_axis import byte_axis, byte_ticks
from lada.report.figures import CASES, PLANS, draw, draw_all
from lada.report.html import png_size
from lada.report.results import Results, load
from lada.report.series import exchanged, gaps, over_seeds, places, size
from lada.report.style import KNOWN, OTHERS, Drawing, looks, zoom
from tests.report.made_up import row, write_results

MATRIX: dict[str, Any] = {
    "scenarios": ["1", "3"],
    "datasets": ["lab-math"],
    "shots": [0, 1],
    "seeds": [0, 1],
    "arms": {
        "standalone": {"method": "standalone"},
        "fedkd": {"method": "fedkd", "label": "FedKD"},
        "lada": {"method": "lada"},
    },
}
ROOT = Path(__file__).parents[2]
POINTS = [
    convergence.Point(control.name, horizon, seed, (seed + 1) * horizon**-0.5)
    for control in convergence.CONTROLS
    for horizon in (4, 16, 64)
    for seed in (0, 1)
]


def series(arm: str, values: list[float], **changes: object) -> list[Row]:
    """Accuracies of rounds 0, 1, …"""
    return [row(arm, value, round=number, **changes) for number, value in enumerate(values)]


ROWS = [
    *series("standalone", [0.30]),
    *series("standalone", [0.34], seed=1),
    *series("standalone", [0.80], party="server"),
    *series("fedkd", [0.30, 0.40, 0.50]),
    *series("fedkd", [0.80, 0.81, 0.82], party="server"),
    *series("lada", [0.30, 0.50, 0.60]),
    *series("lada", [0.30, 0.54, 0.66], seed=1),
    *series("lada", [0.80, 0.81, 0.84], party="server"),
    *series("lada", [0.30, 0.50, 0.60], party="client-2"),
    row("fedkd", 1000.0, "bytes_sent/respond/all/responses", party="server"),
    row("fedkd", 500.0, "bytes_sent/respond/server/responses"),
    row("fedkd", 9e9, "bytes_sent/learn/all/adapters", party="server"),
    row("fedkd", 9e9, "bytes_sent/learn/server/rewards"),
    *series("fedkd", [0.30], party="client-2"),
]


@pytest.fixture()
def results(tmp_path: Path) -> Results:
    paths = write_results(tmp_path, "table2", ROWS, matrix=MATRIX)
    return load("table2", "lab", *paths)


@pytest.fixture()
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test has drawn, before they became files."""
    found: list[Figure] = []

    def keep(
        name: str, figure: Figure, *, title: str, caption: str, missing: tuple[str, ...] = ()
    ) -> Drawing:
        found.append(figure)
        return Drawing(name, title, caption, tuple(missing), {})

    for module in (bars, case_figure, curves, filters, gap, pareto, strips, theory):
        monkeypatch.setattr(module, "drawing", keep)
    return found


def lines_of(figure: Figure, panel: int) -> dict[str, list[float]]:
    """Marker -> heights of the lines of a panel."""
    return {
        str(line.get_marker()): [float(one) for one in line.get_ydata()] for line in figure.axes[panel].lines
    }


# -- what is drawn


def test_means_and_deviations_are_over_seeds_and_parties_weigh_the_same() -> None:
    rows = pd.DataFrame(
        [("a", 0, 1.0), ("a", 0, 3.0), ("a", 1, 4.0), ("b", 0, 7.0)], columns=["arm", "seed", "value"]
    )
    table = over_seeds(rows, ["arm"]).set_index("arm")
    assert table.loc["a", "mean"] == 3.0
    assert table.loc["a", "std"] == pytest.approx(math.sqrt(2))
    assert table.loc["a", "seeds"] == 2
    assert math.isnan(table.loc["b", "std"]), "one seed has no spread, rather than none"


def test_a_line_per_arm_with_its_band_and_an_arm_without_rounds_all_the_way(
    results: Results, drawn: list[Figure]
) -> None:
    curves.rounds(results, "fig4")
    (figure,) = drawn
    assert [panel.get_title() for panel in figure.axes] == [
        "client-1: model-1b",
        "client-2: model-1b",
        "server: model-1b",
    ]
    found = lines_of(figure, 0)
    assert found["o"] == pytest.approx([30, 52, 63])
    assert found["s"] == pytest.approx([30, 40, 50])
    assert found["x"] == pytest.approx([32, 32, 32]), "standalone stands still for all rounds"
    heights = [band.get_paths()[0].vertices[:, 1] for band in figure.axes[0].collections]
    assert len(heights) == 2, "fedkd has one seed: no band"
    assert max(map(np.max, heights)) == pytest.approx(63 + 3 * math.sqrt(2))
    assert "x" not in lines_of(figure, 1), "standalone has no client-2: absent, not zero"
    low, high = figure.axes[2].get_ylim()
    assert high - low >= curves.LEAST_SPAN


def test_what_is_missing_is_listed(results: Results) -> None:
    assert gaps(results)[:3] == [
        "FedKD, lab-math, scenario 1, zero-shot: 1 of 2 seeds",
        "standalone, lab-math, scenario 1, one-shot: no finished run",
        "FedKD, lab-math, scenario 1, one-shot: no finished run",
    ]
    assert len(gaps(results)) == 1 + 3 * 3
    assert [str(place) for place in places(results)][1] == "lab-math, scenario 1, one-shot"


def test_a_message_to_all_counts_once_or_per_client_and_rewards_and_adapters_do_not_count(
    results: Results,
) -> None:
    table = exchanged(results).set_index(["arm", "seed"])
    assert tuple(table.loc[("fedkd", 0), ["once", "unicast"]]) == (1500, 2500)
    assert tuple(table.loc[("standalone", 0), ["once", "unicast"]]) == (0, 0)


def test_bars_have_both_counts_and_a_missing_run_says_so(results: Results, drawn: list[Figure]) -> None:
    drawing = bars.traffic(results, "fig5")
    (figure,) = drawn
    heights = sorted(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == pytest.approx([1.5, 2.5])
    assert figure.axes[0].get_ylabel() == "Sent per run (kB)"
    assert [text.get_text() for text in figure.axes[0].texts] == ["2.50", "no run"], "scenario 3"
    assert "Without messages: standalone, lada." in drawing.caption


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (0.5, "0.50"), (2.345, "2.35"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_numbers_on_bars(value: float, text: str) -> None:
    assert bars.number(value) == text


def test_a_megabyte_is_the_border_of_the_units() -> None:
    assert bars.unit(999_999) == (1e3, "kB")
    assert bars.unit(1e6) == (1e6, "MB")


def test_the_front_holds_what_no_other_dominates() -> None:
    points = [(10.0, 50.0), (0.0, 40.0), (20.0, 50.0), (5.0, 39.0), (30.0, 60.0), (10.0, 45.0)]
    assert pareto.front(points) == [(0.0, 40.0), (10.0, 50.0), (30.0, 60.0)]
    assert pareto.front([]) == []


def test_accuracy_stands_against_bytes(results: Results, drawn: list[Figure]) -> None:
    pareto.pareto(results, "pareto")
    (figure,) = drawn
    assert [panel.get_title() for panel in figure.axes] == [
        "scenario 1, zero-shot, clients' mean",
        "scenario 1, zero-shot, server",
    ]
    (point,) = (line for line in figure.axes[0].lines if line.get_marker() == "s")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((2500, 40)), "mean of 50 and 30"


def test_lada_lies_above_and_every_point_has_its_name(results: Results, drawn: list[Figure]) -> None:
    sent = [row("lada", 800.0, "bytes_sent/respond/all/responses", seed=seed) for seed in (0, 1)]
    found = replace(results, rows=pd.concat([results.rows, pd.DataFrame([vars(one) for one in sent])]))
    pareto.pareto(found, "pareto")
    panel = drawn[0].axes[0]
    points = {line.get_marker(): line.get_zorder() for line in panel.lines if line.get_marker() in ("o", "s")}
    assert points["o"] > points["s"]
    assert {text.get_text() for text in panel.texts} == {"FedKD", "lada"}


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (101e3, 700e3, 6, [100e3, 200e3, 500e3, 1e6]),
        (459e3, 490e3, 4, [200e3, 500e3]),
        (500e3, 500e3, 4, [500e3, 1e6]),
        (101e3, 34e6, 4, [100e3, 1e6, 10e6, 100e6]),
        (1.0, 9e9, 4, [1, 1e3, 1e6, 1e9]),
    ],
)
def test_an_axis_of_bytes_has_two_ticks_at_least_and_no_more_than_fit(
    low: float, high: float, most: int, ticks: list[float]
) -> None:
    assert byte_ticks(low, high, most=most) == pytest.approx(ticks)
    axes = Figure().add_subplot()
    byte_axis(axes, [0.0, low, high], most=most)
    left, right = axes.get_xlim()
    assert left < low <= high < right
    shown = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert len(shown) >= 2, "one label tells no scale"


MANY: dict[str, Any] = {
    **MATRIX,
    "scenarios": ["1"],
    "shots": [0],
    "seeds": [0],
    "arms": {
        **MATRIX["arms"],
        "standalone_matched": {"method": "standalone_matched"},
        "without-filter": {"method": "lada"},
        "random": {"method": "lada", "replays": {"method.select.replay": "lada"}},
        **{f"reward-{number}": {"method": "lada"} for number in range(4)},
    },
}


def test_many_arms_of_equal_bytes_have_a_row_each(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = []
    for number, arm in enumerate(MANY["arms"]):
        for party in ("client-1", "server"):
            rows += series(arm, [0.30, 0.30 + number / 100], party=party)
        if not arm.startswith("standalone"):
            rows.append(row(arm, 500.0 if arm == "fedkd" else 1000.0, "bytes_sent/x/server/ids"))
    results = load("lab-study", "lab", *write_results(tmp_path, "lab-study", rows, matrix=MANY))
    pareto.pareto(results, "pareto-lab-study")
    (figure,) = drawn
    left, clients, _ = figure.axes
    labels = [tick.get_text() for tick in left.get_yticklabels()]
    assert labels == [
        *("Methods of the paper", "standalone", "FedKD", "lada"),
        *("Ablations of the paper", "without-filter"),
        *("Controls", "standalone_matched", "random"),
        *("Pairings, rewards and losses", "reward-0", "reward-1", "reward-2", "reward-3"),
    ]
    assert [text.get_text() for text in left.texts].count("1 kB") == 7
    points = {line.get_ydata()[0]: line for line in clients.lines if line.get_marker() == "o"}
    assert len(points) == len(MANY["arms"]), "no two on one height"
    filled = {labels[int(height)]: line.get_markerfacecolor() != "white" for height, line in points.items()}
    assert [arm for arm, leads in filled.items() if leads] == ["standalone_matched", "reward-3"]
    assert "".join(text.get_text() for text in left.texts).count("sends nothing") == 2


def filter_rows(arm: str, **changes: object) -> list[Row]:
    found = []
    for number, (pairs, coverage) in enumerate(((200, 0.4), (100, 0.5)), start=1):
        values = {"pairs": pairs, "coverage": coverage, "reward_mean": 0.4 + number / 10, "reward_std": 0.1}
        found += [
            row(arm, value, f"filter/server/{metric}", round=number, **changes)
            for metric, value in values.items()
        ]
    return found


def test_the_selected_share_is_of_the_public_questions(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [*ROWS, *filter_rows("lada"), row("fedkd", 400.0, "filter/server/pairs")]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    drawing = filters.selection(results, "diagnostics")
    assert drawing is not None
    assert "by lada" in drawing.caption, "fedkd has no rewards"
    (figure,) = drawn
    found = [list(lines_of(figure, panel).values()) for panel in range(4)]
    assert found[0] == [[0.4, 0.2]], "200 and 100 of 500"
    assert found[1][0] == pytest.approx([0.5, 0.6])
    assert found[2] == [[0.1, 0.1]]
    assert [text.get_text() for text in figure.axes[3].texts] == ["not measured"], "no AUC in these rows"


def test_several_arms_with_rewards_are_lines_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [*ROWS, *filter_rows("lada"), *filter_rows("fedkd")]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    assert filters.selection(results, "diagnostics") is not None
    assert set(lines_of(drawn[0], 0)) == {"o", "s"}


def test_what_a_figure_of_selection_lacks_is_listed_and_said_in_its_panels(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = [*ROWS, *filter_rows("lada"), *(one for one in filter_rows("fedkd") if one.round == 1)]
    rows = [one for one in rows if (one.arm, one.metric) != ("fedkd", "filter/server/reward_std")]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    drawing = filters.selection(results, "diagnostics")
    assert drawing is not None
    assert "lada, lab-math, scenario 1, one-shot: no finished run" in drawing.missing
    assert not [line for line in drawing.missing if line.startswith("standalone")], "it has no filter"
    place = "lab-math, scenario 1, zero-shot"
    assert f"lada, {place}, clients choose: not recorded: AUC of reward" in drawing.missing
    assert f"FedKD, {place}, clients choose: not recorded: std of rewards, AUC of reward" in drawing.missing
    everything = "selected share, mean reward, std of rewards, AUC of reward"
    assert f"lada, {place}, server chooses: not recorded: {everything}" in drawing.missing
    assert [panel.get_title() for panel in drawn[0].axes[:3]] == [
        "selected share",
        "mean reward",
        "std of rewards (1/2 lines)",
    ]


def test_a_share_is_called_learnt_or_configured_by_the_arms_settings() -> None:
    topk = {"method.select.rule": "topk", "method.select.share": 0.5}
    arms = {
        "a": Arm(method="lada"),
        "b": Arm(method="lada", settings=topk),
        "c": Arm(
            method="fedmkt", settings={"method.lada.select.rule": "topk", "method.lada.select.share": 0.5}
        ),
        "d": Arm(method="lada", settings={"method.use_filter": False}),
        "e": Arm(
            method="lada", settings={"method.select.mode": "random"}, replays={"method.select.replay": "b"}
        ),
    }
    matrix = Matrix(scenarios=("1",), arms=arms)
    said = filters.configured_shares(matrix, ["a"])
    assert said == "The share is what the filter scores above a threshold, so it is learnt."
    assert "a share of 0.5, rule topk) and flat for that reason, not learnt: “b”, “c”" in (
        filters.configured_shares(matrix, list(arms))
    )
    assert (
        "without a filter: “d”; drawn without a filter, at most as many as another arm's filters took: “e”"
        in (filters.configured_shares(matrix, list(arms)))
    )
    general = matrix.model_copy(update={"settings": topk})
    assert "not learnt" in filters.configured_shares(general, ["a"])


def test_without_rewards_there_is_no_figure_of_selection(results: Results) -> None:
    assert filters.selection(results, "diagnostics") is None


def test_the_gap_is_drawn_by_size_of_the_other_side(tmp_path: Path, drawn: list[Figure]) -> None:
    servers = {"big": "Q/Big-72B-Instruct", "small": "Q/Small-8B"}
    matrix = {
        "scenarios": list(servers),
        "federations": {name: [model, "G/tiny-2b"] for name, model in servers.items()},
        "arms": {"fedkd": {"method": "fedkd"}},
        "seeds": [0],
    }
    rows = []
    for name, last in (("big", 0.4), ("small", 0.5)):
        rows += series("fedkd", [0.3, last], scenario=name, model="G/tiny-2b")
        rows += series("fedkd", [0.8, 0.9], scenario=name, model=servers[name], party="server")
    results = load("fig2", "lab", *write_results(tmp_path, "fig2", rows, matrix=matrix))
    assert gap.learnability(results, "fig2").missing == ()
    left = drawn[0].axes[0]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["Small-8B", "Big-72B-Instruct"]
    assert left.lines[0].get_ydata() == pytest.approx([50, 40])
    assert left.lines[-1].get_ydata() == pytest.approx([30, 30]), "before, of the same federations"


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen3-0.6B", 0.6),
        ("internlm/internlm3-8b-instruct", 8),
        ("google/gemma-2-27b", 27),
        ("x/y", math.inf),
    ],
)
def test_sizes_are_read_from_names(model: str, billions: float) -> None:
    assert size(model) == billions


def test_the_toy_has_a_line_per_control_and_its_slope(drawn: list[Figure]) -> None:
    theory.rate(POINTS, "convergence")
    labels = [str(line.get_label()) for line in drawn[0].axes[0].lines]
    assert labels == [
        "unbiased, step 1/√T: slope −0.50 (T ≥ 16)",
        "biased gradient: slope −0.50 (T ≥ 16)",
        "constant step: slope −0.50 (T ≥ 16)",
        "slope −1/2",
    ]
    figure = drawn[0]
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width, "the whole legend is on the page"


def test_what_the_papers_text_states_stands_beside_what_was_measured(tmp_path: Path) -> None:
    lada = {"scenario": "1", "shots": 1, "party": "client-1"}
    rows = [*ROWS, *series("lada", [0.3, 0.2, 0.4], **lada)]
    rows += [row("lada", 1500.0, "bytes_sent/respond/server/responses", **{**lada, "party": "client-1"})]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    accuracies = curves.rounds(results, "fig4").stated
    assert "lada, lab-math, scenario 1, one-shot, client-1, round 1: paper 19.0, here 20.0" in accuracies
    assert (
        "lada, lab-math, scenario 1, one-shot, client-1, round 5: paper 25.8, here not measured" in accuracies
    )
    sent = bars.traffic(results, "fig5").stated
    assert "FedKD, lab-math, zero-shot, scenario 1: paper 5.15 MB, here 2.5 kB" in sent
    assert "lada, lab-math, one-shot, most of the scenarios: paper 6.71 MB, here 1.5 kB" in sent
    assert "FedKD, lab-math, zero-shot, scenario 3: paper 6.56 MB, here not measured" in sent


def test_what_is_stated_of_places_that_a_matrix_has_not_is_not_called_missing(tmp_path: Path) -> None:
    matrix = {**MATRIX, "scenarios": ["1"], "shots": [0]}
    results = load("table4", "lab", *write_results(tmp_path, "table4", ROWS, matrix=matrix))
    accuracies = curves.rounds(results, "rounds-table4").stated
    assert len(accuracies) == 1, "the paper's text states one of scenario 1, zero-shot"
    assert "scenario 1, zero-shot, client-2, round 2: paper 48.6" in accuracies[0]
    sent = bars.traffic(results, "bytes-table4").stated
    assert [line.partition(":")[0] for line in sent] == [
        "lada, lab-math, zero-shot, scenario 1",
        "FedKD, lab-math, zero-shot, scenario 1",
    ], "nothing of all scenarios together either"


# -- how it looks


def test_arms_can_be_told_apart_without_colour() -> None:
    names = [*KNOWN, *(f"arm-{number}" for number in range(len(OTHERS)))]
    found = looks(names)
    assert len({(look.marker, look.line) for look in found.values()}) == len(names)
    assert len({(look.color, look.marker) for look in found.values()}) == len(names)
    study = read_matrix("lab-study")
    assert len({(look.marker, look.line) for look in looks(list(study.arms)).values()}) == len(study.arms)
    assert looks(["x", "lada"])["lada"] == KNOWN["lada"], "the same in all figures"


# -- files


def test_the_same_figure_is_the_same_bytes_in_another_process_and_with_other_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = theory.rate(POINTS, "x").files
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert theory.rate(POINTS, "x").files == mine
    code = (
        "import hashlib\nfrom lada.report import theory\nfrom tests.report.test_figures import POINTS\n"
        "for name, content in theory.rate(POINTS, 'x').files.items():\n"
        "    print(name, hashlib.sha256(content).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    theirs = dict(line.split() for line in done.stdout.splitlines())
    assert theirs == {name: hashlib.sha256(content).hexdigest() for name, content in mine.items()}


def test_a_pdf_has_its_fonts_as_outlines_and_no_date_and_a_png_its_resolution() -> None:
    files = theory.rate(POINTS, "x").files
    assert files["pdf"].startswith(b"%PDF")
    assert b"/FontFile2" in files["pdf"]
    assert b"/Type3" not in files["pdf"]
    assert b"Date" not in files["pdf"]
    width, height = png_size(files["png"])
    assert width == round(4.6 * 200)
    assert height > 200


def test_all_figures_that_can_be_drawn_are_written_and_the_others_are_named(tmp_path: Path) -> None:
    results, configs = write_results(tmp_path, "table2", [*ROWS, *filter_rows("lada")], matrix=MATRIX)
    convergence.write(POINTS, results / "convergence.csv")
    written = draw_all("lab", results, configs)
    names = {path.name for path in written}
    expected = {"fig4", "fig5", "pareto", "diagnostics", "convergence"}
    assert names == {"README.md", *(f"{name}.{end}" for name in expected for end in ("pdf", "png"))}
    assert all(path.is_file() for path in written)
    index = (results / "lab" / "figures" / "README.md").read_text()
    assert "- fig2: lab/fig2.csv is not there" in index
    assert "- fig6: lab/table2-cases.jsonl is not there" in index
    assert "- standalone, lab-math, scenario 1, one-shot: no finished run" in index
    first = {path: path.read_bytes() for path in written}
    draw_all("lab", results, configs)
    assert {path: path.read_bytes() for path in written} == first
    (results / "convergence.csv").unlink()
    draw_all("lab", results, configs)
    assert not list(written[0].parent.glob("convergence.*")), "a figure without its results"


@pytest.mark.parametrize(("low", "high", "limits"), [(0.01, 0.02, (0, 0.1)), (-0.01, 0.01, (-0.05, 0.05))])
def test_what_is_never_negative_has_no_room_below_zero(
    low: float, high: float, limits: tuple[float, float]
) -> None:
    axes = Figure().add_subplot()
    zoom(axes, low, high, least=0.1)
    assert axes.get_ylim() == pytest.approx(limits)


def test_with_no_results_all_figures_of_the_paper_are_missing(tmp_path: Path) -> None:
    gallery = draw("lab", tmp_path, CONFIGS)
    assert gallery.drawings == ()
    assert [line.partition(":")[0] for line in gallery.missing] == [
        *(plan.name for plan in PLANS if plan.belongs),
        "fig6",
        "convergence",
    ]


def test_a_wrong_file_is_an_error_not_a_missing_figure(tmp_path: Path) -> None:
    results, configs = write_results(tmp_path, "table2", ROWS, matrix=MATRIX)
    (results / "lab" / "table2.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"table2\.csv: columns"):
        draw("lab", results, configs)


def test_every_figure_has_a_matrix_and_names_are_unique() -> None:
    for matrix in {*(plan.matrix for plan in PLANS), *CASES.values()}:
        assert (CONFIGS / "matrices" / f"{matrix}.yaml").is_file()
        assert yaml.safe_load((CONFIGS / "matrices" / f"{matrix}.yaml").read_text())
    names = [*(plan.name for plan in PLANS), *CASES]
    assert len(set(names)) == len(names)


DRAW: tuple[Callable[[Results, str], Drawing | None], ...] = (
    bars.traffic,
    curves.rounds,
    filters.selection,
    gap.learnability,
    pareto.pareto,
)


@pytest.mark.parametrize("draw_one", DRAW)
def test_one_run_of_one_arm_is_enough_for_any_figure(
    tmp_path: Path, draw_one: Callable[[Results, str], Drawing | None]
) -> None:
    rows = [*series("standalone", [0.3]), *series("standalone", [0.8], party="server")]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    drawing = draw_one(results, "x")
    assert drawing is None or drawing.files["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("draw_one", DRAW)
def test_values_that_are_no_numbers_are_absent(
    tmp_path: Path, draw_one: Callable[[Results, str], Drawing | None]
) -> None:
    rows = [one if one.arm != "lada" or one.round != 2 else row_nan(one) for one in ROWS]
    results = load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=MATRIX))
    drawing = draw_one(results, "x")
    assert drawing is None or drawing.files["pdf"].startswith(b"%PDF")


def row_nan(one: Row) -> Row:
    return Row(**{**vars(one), "value": math.nan})
