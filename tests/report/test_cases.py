"""Case studies: read strictly, written so that no model's text can change the page around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada.errors import DataError
from lada.report.cases import Case, read_cases, to_markdown

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
