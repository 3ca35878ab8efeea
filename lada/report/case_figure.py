"""Fig. 6 as a figure: test questions that two arms answered, one rightly and one wrongly, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from lada.report.cases import Answer, Case
from lada.report.results import Results
from lada.report.series import places
from lada.report.style import BLACK, BLUE, QUIET, RED, WIDTH, Drawing, drawing, styled

MOST = 2
"""Cases that the figure shows."""
ACROSS, INSIDE = 104, 50
"""Characters in a line of the question, and of an answer's box."""
LONGEST = 24
"""Lines of a text that are shown; the rest is counted."""
LINE = 0.125
"""Inches of a line."""
MONO = "DejaVu Sans Mono"
UNKNOWN = "□"


@dataclass(frozen=True)
class Box:
    """One answer as it is drawn."""

    head: str
    lines: tuple[str, ...]
    is_right: bool


def shown(results: Results, cases: Sequence[Case]) -> list[Case]:
    """The cases that the figure shows: `MOST` of the first place and party, in the matrix's order.

    Choice: nobody picks; where the first party has a win of the contrast's first arm and a loss, both.
    """
    order = {(one.scenario, one.dataset, one.shots): number for number, one in enumerate(places(results))}
    known = [case for case in cases if (case.scenario, case.dataset, case.shots) in order]
    ranked = sorted(known, key=lambda case: order[case.scenario, case.dataset, case.shots])
    first = [case for case in ranked if case.place == ranked[0].place]
    return first[:MOST]


def missing_cases(results: Results, cases: Sequence[Case]) -> list[str]:
    """Where there is no case, a line per place and reason, by the runs that `lada.matrix.cases` looks at."""
    return list(_missing(results, cases))


def _missing(results: Results, cases: Sequence[Case]) -> Iterator[str]:
    matrix, rows = results.matrix, results.rows
    if not matrix.contrasts:
        return
    (first, second), seed = matrix.contrasts[0], matrix.seeds[0]
    have = {(case.scenario, case.dataset, case.shots, case.party, case.right) for case in cases}
    mine = rows[rows["seed"] == seed]
    for place in places(results):
        here = place.of(mine)
        unfinished = [matrix.label(arm) for arm in (first, second) if arm not in set(here["arm"])]
        if unfinished:
            yield f"{place}: no finished run of seed {seed} of {' and '.join(unfinished)}"
            continue
        where = (place.scenario, place.dataset, place.shots)
        reasons: dict[str, list[str]] = {}
        for party in sorted(set(here["party"])):
            for arm, other, end in ((first, second, "won"), (second, first, "lost")):
                if (*where, party, arm) not in have:
                    found = here[(here["arm"] == first) & (here["party"] == party)]
                    number = found[found["metric"] == f"paired/{second}_{end}"]["value"].sum()
                    why = (
                        "its runs kept no texts of the answers"
                        if number
                        else f"no question that {matrix.label(arm)} alone answered rightly"
                    )
                    what = f"{matrix.label(arm)} right, {matrix.label(other)} wrong"
                    reasons.setdefault(why, []).append(f"{party} ({what})")
        for why, who in reasons.items():
            everyone = len(who) == 2 * here["party"].nunique()
            yield f"{place}, seed {seed}: {'all parties' if everyone else ', '.join(who)}: {why}"


def case_study(results: Results, cases: Sequence[Case], name: str) -> Drawing | None:
    """The question with its options, and below it both answers with their letter and why; None: no case."""
    found = shown(results, cases)
    if not found:
        return None
    labels = {arm: results.matrix.label(arm) for arm in results.matrix.arms}
    blocks = [(_question(case), [_box(one, labels) for one in case.compared]) for case in found]
    heights = [
        LINE * (len(question) + max(len(box.lines) for box in boxes) + 4.5) for question, boxes in blocks
    ]
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights)))
        axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)
        for (question, boxes), height, (panel,) in zip(blocks, heights, axes, strict=True):
            _panel(panel, question, boxes, height)
        caption = (
            f"The same test questions answered by two arms ({found[0].place}): the first questions by id "
            "that one of the two alone answered rightly, both ways round, of the first place and party that "
            "have such; nobody picked them. In each box the letter that was read from the text, whether it "
            f"is right, and the rule that gave it. All {len(cases)} cases are in {name}.md, uncut."
        )
        return drawing(
            name, figure, title="Case study", caption=caption, missing=missing_cases(results, cases)
        )


def _question(case: Case) -> list[str]:
    options = "   ".join(f"{letter}: {text}" for letter, text in case.options.items())
    lines = _wrapped(case.question, ACROSS) + _wrapped(options, ACROSS)
    return [*lines, f"Right: {case.gold}    ({case.id})"]


def _box(answer: Answer, labels: Mapping[str, str]) -> Box:
    sign = "✓" if answer.correct else "✗"
    head = f"{sign} {labels.get(answer.arm, answer.arm)}: {answer.verdict}"
    why = textwrap.wrap(f"Why: {drawable(answer.why)}", INSIDE)
    return Box(drawable(head), (*_wrapped(answer.text, INSIDE), "", *why), answer.correct)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines as written, long ones broken; what is too long is cut, and said to be."""
    lines = [
        part
        for line in drawable(text).splitlines()
        for part in (textwrap.wrap(line, width, drop_whitespace=False) or [""])
    ]
    if len(lines) <= LONGEST:
        return lines
    return [*lines[: LONGEST - 1], f"[… {len(lines) - LONGEST + 1} more lines]"]


def drawable(text: str) -> str:
    """The text with a box for each character that the figure's font has not."""
    known = get_font(findfont(FontProperties(family=MONO)))
    return "".join(
        one if one == "\n" or known.get_char_index(ord(one)) else " " if one.isspace() else UNKNOWN
        for one in text
    )


def _panel(axes: Axes, question: Sequence[str], boxes: Sequence[Box], height: float) -> None:
    """Coordinates are inches from the upper left corner."""
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    _text(axes, 0.05, LINE, question[:-1], color=BLACK)
    _text(axes, 0.05, LINE * (1 + len(question) - 1), question[-1:], color=QUIET)
    top = LINE * (len(question) + 1)
    width = WIDTH / max(1, len(boxes))
    lines = max(len(box.lines) for box in boxes)
    for number, box in enumerate(boxes):
        left = number * width + 0.05
        color = BLUE if box.is_right else RED
        axes.add_patch(
            Rectangle(
                (left, top),
                width - 0.1,
                LINE * (lines + 2.3),
                fill=False,
                edgecolor=color,
                linewidth=1.2,
                linestyle="-" if box.is_right else (0, (4, 2)),
            )
        )
        axes.text(
            left + 0.08,
            top + 0.6 * LINE,
            box.head,
            va="top",
            size=7,
            weight="bold",
            color=color,
            parse_math=False,
        )
        _text(axes, left + 0.08, top + 2 * LINE, box.lines, color=BLACK)


def _text(axes: Axes, left: float, top: float, lines: Sequence[str], *, color: str) -> None:
    for number, line in enumerate(lines):
        axes.text(
            left, top + LINE * number, line, va="top", size=6.3, family=MONO, color=color, parse_math=False
        )
