"""Prompts and targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada.answers import extract_letter
from lada.prompts import TEMPLATES, answer_only, join, option_text, prompt, render_question, solution
from lada.records import Item, Question

ITEM = Item(
    id="q1",
    question="2 + 2?",
    options=("3", "4", "5", "6"),
    answer="B",
    rationale="2 + 2 = 4",
)


def test_the_lab_prompt_ends_where_the_response_begins() -> None:
    assert prompt(ITEM) == "Q: 2 + 2? A) 3 B) 4 C) 5 D) 6\nSolution:"
    assert prompt(ITEM, cue="letter").endswith("\nAnswer:")
    assert prompt(ITEM, cue="steps").endswith("\nSteps:")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_never_tells_answer_or_rationale(template: str) -> None:
    other = ITEM.model_copy(update={"answer": "D", "rationale": "because"})
    assert prompt(ITEM, template=template) == prompt(other, template=template)
    assert prompt(ITEM, template=template) == prompt(ITEM.public(), template=template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_shot_puts_a_solved_example_before_the_same_prompt(template: str) -> None:
    shown = prompt(ITEM.public(), template=template, demo=ITEM)
    assert shown.endswith("\n\n" + prompt(ITEM, template=template))
    assert shown.count("The answer is B") == 1
    assert join(solution(ITEM), template) in shown


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_shot_for_a_bare_letter_shows_a_bare_letter(template: str) -> None:
    shown = prompt(ITEM.public(), template=template, demo=ITEM, cue="letter")
    first, last = shown.split("\n\n")
    assert first.endswith("Answer: B")
    assert last == prompt(ITEM, template=template, cue="letter")
    assert "2 + 2 = 4" not in shown


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    stem=st.text(min_size=1, max_size=60),
    options=st.tuples(*[st.text(min_size=1, max_size=20)] * 4),
)
def test_stem_and_options_survive_as_they_are(template: str, stem: str, options: tuple[str, ...]) -> None:
    shown = render_question(Question(id="q", question=stem, options=options), template)
    assert stem in shown
    assert all(option in shown for option in options)


def test_braces_and_format_words_in_a_question_survive() -> None:
    question = Question(id="q", question="{options} {stem} {0}", options=("{text}", "{", "}", "{letter}"))
    shown = render_question(question)
    assert shown == "Q: {options} {stem} {0} A) {text} B) { C) } D) {letter}\n"


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_target_leads_to_the_items_own_letter(template: str) -> None:
    for letter in "ABCD":
        item = Item.model_validate({**ITEM.model_dump(), "answer": letter})
        for target in (solution(item), answer_only(item)):
            assert extract_letter(join(target, template), item.options) == letter


def test_targets_hold_what_they_should() -> None:
    assert option_text(ITEM) == "4"
    assert answer_only(ITEM) == "4 B.\nThe answer is B"
    assert solution(ITEM) == "2 + 2 = 4\nThe answer is B"
    assert "2 + 2" not in answer_only(ITEM)
    with pytest.raises(ValueError, match="q1 has no rationale"):
        solution(ITEM.without_rationale())


def test_responses_are_joined_stripped() -> None:
    assert [join("  a "), join("b\n")] == [" a", " b"]
