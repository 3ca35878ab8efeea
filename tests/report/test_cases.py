"""Case studies: read strictly, written so that no model's text can change the page around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada.errors import DataError
from lada.report.case_figure import LONGEST, case_study, drawable, missing_cases, shown
from lada.report.cases import Case, read_cases, to_markdown
from lada.report.results import Results, load
from tests.report.made_up import counts, row, write_results

LETTERS = "ABCD"


def case(**changes: Any) -> dict[str, Any]:
    answers = [
        {
            "arm": "fedkd",
            "run_id": "run-f",
            "text": "so C",
            "letter": "C",
            "correct": False,
            "why": "last letter",
        },
        {
            "arm": "lada",
            "run_id": "run-l",
            "text": "it is B",
            "letter": "B",
            "correct": True,
            "why": "stated",
        },
        {"arm": "sft", "run_id": "run-s", "text": "", "letter": None, "correct": False, "why": "no letter"},
    ]
    return {
        "scenario": "1",
        "dataset": "lab-math",
        "shots": 0,
        "seed": 3,
        "party": "client-2",
        "right": "lada",
        "wrong": "fedkd",
        "id": "q7",
        "question": "Which?",
        "options": dict(zip(LETTERS, ["6", "7", "8", "*9*"], strict=True)),
        "gold": "B",
        "answers": answers,
        **changes,
    }


def write(path: Path, *cases: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in cases), encoding="utf-8")
    return path


def test_cases_are_read_with_the_two_compared_answers_first(tmp_path: Path) -> None:
    (found,) = read_cases(write(tmp_path / "cases.jsonl", case()))
    assert found.place == "lab-math, scenario 1, zero-shot, client-2, seed 3"
    assert [answer.arm for answer in found.compared] == ["lada", "fedkd"]
    assert [answer.verdict for answer in found.compared] == ["B, right", "C, wrong"]
    assert [answer.verdict for answer in found.others] == ["no letter, counted as wrong"]


def test_no_file_is_no_cases_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    assert read_cases(tmp_path / "none.jsonl") == []
    path = write(tmp_path / "cases.jsonl", case(), case(gold=2))
    with pytest.raises(DataError, match=r"cases\.jsonl, line 2: gold"):
        read_cases(path)
    path.write_text("{\n")
    with pytest.raises(DataError, match="line 1"):
        read_cases(path)


def test_markdown_has_question_options_both_texts_letters_and_why() -> None:
    text = to_markdown([Case.model_validate_json(json.dumps(case()))], {"lada": "LaDa"})
    assert "## lab-math, scenario 1, zero-shot, client-2, seed 3: q7" in text
    assert "- B: 7 (right)" in text
    assert r"- D: \*9\*" in text
    assert text.index("**LaDa** (B, right; stated)") < text.index("**fedkd** (C, wrong; last letter)")
    assert "`run-l`" in text
    assert "Others: sft: no letter, counted as wrong." in text


def test_a_text_with_fences_stays_inside_its_own() -> None:
    answers = case()["answers"]
    answers[1]["text"] = "````\n# not a heading\n````"
    text = to_markdown([Case.model_validate_json(json.dumps(case(answers=answers)))], {})
    assert "`````text\n````\n# not a heading\n````\n`````" in text


def parsed(**changes: Any) -> Case:
    return Case.model_validate_json(json.dumps(case(**{"seed": 0, "party": "client-1", **changes})))


@pytest.fixture()
def results(tmp_path: Path) -> Results:
    """Scenario 1 has runs and both ways of differing, 2 runs that differ one way, 3 one run, 4 none."""
    matrix = {
        "scenarios": ["1", "2", "3", "4"],
        "seeds": [0, 1],
        "arms": {"lada": {"method": "lada", "label": "LaDa $x$"}, "fedkd": {"method": "fedkd"}},
        "contrasts": [["lada", "fedkd"]],
    }
    rows = [row(arm, 0.5, scenario=place) for arm in ("lada", "fedkd") for place in "12"]
    rows += [row("lada", 0.5, scenario="3"), row("fedkd", 0.5, scenario="4", seed=1)]
    rows += [*counts("lada", "fedkd", 5, 4, 50), *counts("lada", "fedkd", 5, 0, 50, scenario="2")]
    return load("table2", "lab", *write_results(tmp_path, "table2", rows, matrix=matrix))


def test_where_there_is_no_case_is_said_with_the_reason(results: Results) -> None:
    kept_none = "its runs kept no texts of the answers"
    assert missing_cases(results, []) == [
        f"lab-math, scenario 1, zero-shot, seed 0: all parties: {kept_none}",
        "lab-math, scenario 2, zero-shot, seed 0: client-1 (LaDa $x$ right, fedkd wrong): " + kept_none,
        "lab-math, scenario 2, zero-shot, seed 0: client-1 (fedkd right, LaDa $x$ wrong): no question that "
        "fedkd alone answered rightly",
        "lab-math, scenario 3, zero-shot: no finished run of seed 0 of fedkd",
        "lab-math, scenario 4, zero-shot: no finished run of seed 0 of LaDa $x$ and fedkd",
    ]
    both = [parsed(), parsed(right="fedkd", wrong="lada")]
    assert not [line for line in missing_cases(results, both) if "scenario 1" in line]
    text = to_markdown(both, {}, missing=missing_cases(results, both))
    assert "Missing:" in text and r"LaDa \$x\$ and fedkd" in text


def test_the_figure_shows_the_first_place_and_party_both_ways_round(results: Results) -> None:
    later, elsewhere = parsed(scenario="2"), parsed(party="client-2")
    first = [parsed(), parsed(right="fedkd", wrong="lada", id="q9")]
    cases = [later, *first, elsewhere]
    assert shown(results, cases) == first
    drawing = case_study(results, cases, "fig6")
    assert drawing is not None
    assert drawing.files["png"].startswith(b"\x89PNG") and drawing.files["pdf"].startswith(b"%PDF")
    assert "All 4 cases are in fig6.md" in drawing.caption
    assert any("scenario 4, zero-shot: no finished run" in line for line in drawing.missing)
    assert case_study(results, [], "fig6") is None


def test_both_answers_stand_in_the_panel_with_letter_verdict_and_why(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("lada.report.case_figure.drawing", lambda _, figure, **__: figures.append(figure))
    answers = case()["answers"]
    answers[1]["text"] = "so $5 and $6\n" + "\n".join(f"step {number}" for number in range(99))
    case_study(results, [parsed(answers=answers)], "fig6")
    (panel,) = figures[0].axes
    said = [text.get_text() for text in panel.texts]
    for line in ("Which?", "✓ LaDa $x$: B, right", "✗ fedkd: C, wrong", "so $5 and $6", "so C"):
        assert line in said, line
    assert "Why: stated" in said and "Why: last letter" in said
    assert f"[… {100 - LONGEST + 1} more lines]" in said, "what is cut is said to be"
    right, wrong = (box.get_linestyle() for box in panel.patches)
    assert right == "-" != wrong, "right and wrong differ without colour"


def test_characters_without_a_glyph_are_boxes() -> None:
    assert drawable("a\n是\tb✓") == "a\n□ b✓"
