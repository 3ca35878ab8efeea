"""Traces, dialogues and their parts, without a run: parsing, what each role learns, when a dialogue ends."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lada.socratic
from lada.answers import extract_letter, has_marker
from lada.config import GenerationOptions
from lada.data import lab
from lada.data.lab_skills import trace
from lada.generation import Generated
from lada.prompts import TEMPLATES, prompt, render_question, solution
from lada.records import Question
from lada.socratic import DialogueLimits, SubStep, as_dialogue, converse, parse_trace, pieces, render_trace
from tests.tiny_models import tiny_model

STEPS = [SubStep("12 + 5?", "17."), SubStep("17 - 3?", "14 C.\nThe answer is C")]
TRACE = "Q1: 12 + 5? A1: 17. Q2: 17 - 3? A2: 14 C.\nThe answer is C"
QUESTION = Question(id="q", question="Compute 12 + 5 - 3.", options=("1", "2", "14", "17"))


# -- traces


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_what_the_lab_models_were_taught_parses_and_comes_back_as_it_was(dataset: str) -> None:
    items = lab.generate(dataset, dict.fromkeys(lab.makers(dataset), 1.0), 160, "socratic")
    for item in items:
        steps = parse_trace(trace(item))
        assert steps is not None and render_trace(steps) == trace(item)
        assert extract_letter(steps[-1].solution, item.options) == item.answer
        assert parse_trace(solution(item)) is None, "a plain chain of thought is no trace"


def test_a_trace_by_hand() -> None:
    assert parse_trace(TRACE) == STEPS
    assert render_trace(STEPS) == TRACE


REAL = """
Q1: How many apples does Ann buy in total?
A1: She buys 3 bags of 4 apples, so 3 * 4 = 12 apples.

Q2: How many are left after she eats 2?
A2: 12 - 2 = 10.
Q3: How many apples are left?
A3: Ten apples are left, which is option (B).
The answer is B"""


def test_a_trace_as_real_models_write_it() -> None:
    """The form that the plain template asks for: one label a line, full sentences, blank lines between."""
    steps = parse_trace(REAL)
    assert steps is not None and [step.question for step in steps] == [
        "How many apples does Ann buy in total?",
        "How many are left after she eats 2?",
        "How many apples are left?",
    ]
    assert steps[2].solution == "Ten apples are left, which is option (B).\nThe answer is B"
    assert extract_letter(steps[2].solution, QUESTION.options) == "B"
    long = REAL.replace("Q", "Sub-question ").replace("A1", "Answer 1").replace("A2", "Answer 2")
    assert parse_trace(long.replace("A3", "Answer 3")) == steps


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12 + 5 = 17. 17 - 3 = 14 C.\nThe answer is C",
        "Let me see. " + TRACE,
        TRACE.replace("\nThe answer is C", ""),
        TRACE.replace("17.", "17. The answer is B"),
        TRACE.replace("Q2", "Q3"),
        TRACE.replace("A1", "A2"),
        TRACE.replace("A1: 17.", ""),
        TRACE.replace(" 17.", ""),
        "A1: 17. Q1: 12 + 5?",
        TRACE + " Q3: more?",
    ],
)
def test_what_is_not_well_formed_is_no_trace(text: str) -> None:
    assert parse_trace(text) is None


part = st.text(st.characters(codec="ascii", exclude_characters=":"), min_size=1, max_size=20).map(
    lambda text: " ".join(text.split()) or "x"
)


@given(st.lists(st.tuples(part, part), min_size=1, max_size=6))
def test_rendering_and_parsing_are_inverse(parts: list[tuple[str, str]]) -> None:
    steps = [SubStep(asked, solved) for asked, solved in parts if not has_marker(solved)]
    if not steps:
        return
    steps[-1] = SubStep(steps[-1].question, f"{steps[-1].solution}\nThe answer is A")
    assert parse_trace(render_trace(steps)) == steps


def test_a_plain_text_is_a_dialogue_of_one_pair_that_restates_the_question() -> None:
    assert as_dialogue(QUESTION, " 14 C.\nThe answer is C ") == [
        SubStep(QUESTION.question, "14 C.\nThe answer is C")
    ]
    assert as_dialogue(QUESTION, TRACE) == STEPS


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_cue_asks_for_the_form_that_is_parsed(template: str) -> None:
    asked = prompt(QUESTION, template=template, cue="steps")
    assert asked.startswith(render_question(QUESTION, template)) and asked.endswith("Steps:")
    if template == "plain":
        assert "Q1: " in asked and "A1: " in asked and "The answer is X" in asked


# -- pieces


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_put_together_are_the_trace(template: str) -> None:
    found = pieces(STEPS, template)
    assert [piece.said for piece in found] == [" 12 + 5?", " 17.", " 17 - 3?", " 14 C.\nThe answer is C"]
    assert found[-1].context + found[-1].said == " " + TRACE
    for before, after in itertools.pairwise(found):
        assert after.context.startswith(before.context + before.said)
    assert [re.findall(r"[QA][0-9]:", piece.context)[-1] for piece in found] == ["Q1:", "A1:", "Q2:", "A2:"]


# -- dialogues

LIMITS = DialogueLimits(max_steps=3, question_tokens=7, solution_tokens=9)
OPTIONS = GenerationOptions(max_new_tokens=50, temperature=0.0)


class Scripted:
    """Stands in for `generate`: says what its script has for a prompt, and remembers prompts and limits."""

    def __init__(self, script: dict[str, str]) -> None:
        self.script, self.calls = script, []

    def __call__(
        self, model: Any, prompts: Sequence[str], options: GenerationOptions, *, resume: None
    ) -> list[Generated]:
        self.calls.append((list(prompts), options.max_new_tokens))
        said = [self.script[prompt] for prompt in prompts]
        return [Generated(one.removesuffix("…"), 4, not one.endswith("…"), -0.5) for one in said]


def talk(monkeypatch: pytest.MonkeyPatch, script: dict[str, str], prompts: list[str]) -> Any:
    scripted = Scripted(script)
    monkeypatch.setattr(lada.socratic, "generate", scripted)
    return converse(None, prompts, OPTIONS, LIMITS, template="lab"), scripted.calls  # type: ignore[arg-type]


def test_asker_and_solver_take_turns_until_a_solution_has_the_marker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = {
        "P Q1:": "12 + 5?",
        "P Q1: 12 + 5? A1:": "17.",
        "P Q1: 12 + 5? A1: 17. Q2:": "17 - 3?",
        "P Q1: 12 + 5? A1: 17. Q2: 17 - 3? A2:": "14 C.\nThe answer is C",
        "R Q1:": "all?",
        "R Q1: all? A1:": "The answer is A",
    }
    found, calls = talk(monkeypatch, script, ["P", "R"])
    assert [(one.text, one.finished, one.num_tokens) for one in found] == [
        ("14 C.\nThe answer is C", True, 16),
        ("The answer is A", True, 8),
    ]
    assert [limit for _, limit in calls] == [7, 9, 7, 9]
    assert [len(prompts) for prompts, _ in calls] == [2, 2, 1, 1]
    assert found[0].confidence == pytest.approx(-0.5)


def test_a_dialogue_without_an_end_ends_after_its_last_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    script, said = {}, "P"
    for number in (1, 2, 3):
        script[f"{said} Q{number}:"] = "more?"
        said += f" Q{number}: more? A{number}:"
        script[said] = f"{number} so far"
        said += f" {number} so far"
    ((found,), calls) = talk(monkeypatch, script, ["P"])
    assert (found.text, found.finished) == ("3 so far", False)
    assert len(calls) == 6


def test_a_piece_that_does_not_end_ends_the_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"P Q1:": "what is…", "R Q1:": "all?", "R Q1: all? A1:": "The answer is A…"}
    found, _ = talk(monkeypatch, script, ["P", "R"])
    assert [(one.text, one.finished) for one in found] == [("what is", False), ("The answer is A", False)]


def test_a_real_model_converses_and_the_same_again() -> None:
    model = tiny_model()
    first = converse(model, ["Q: 1 + 1?\nSolution:", "Q: 2?\nSolution:"], OPTIONS, LIMITS, template="lab")
    again = converse(model, ["Q: 1 + 1?\nSolution:", "Q: 2?\nSolution:"], OPTIONS, LIMITS, template="lab")
    assert first == again and all(0 < one.num_tokens <= 3 * (7 + 9) for one in first)
