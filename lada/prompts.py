"""Questions and targets as text. One template per tier; the same prompt for generation, training and test.

A prompt ends where the response begins; a response is stored stripped and joined with the template's
``join``. Prompt and response are tokenised separately and their ids are joined (architecture, section 9).
"""

from __future__ import annotations

from dataclasses import dataclass

from lada.records import LETTERS, Item, Question


@dataclass(frozen=True)
class Template:
    """How a question is laid out.

    Attributes:
        question: format of the stem and the option block.
        option: format of one option.
        cue: what precedes the reasoning, the bare letter and the sub-question trace.
        thoughts, asking, rephrase: cues of the tree search (`lada.tree_actions`).
        join: text between a prompt and a response.
    """

    question: str
    option: str
    option_join: str
    reason: str
    letter: str
    steps: str
    join: str
    thoughts: str = "Solution:"
    asking: str = "Steps:"
    rephrase: str = ""


TEMPLATES = {
    # Choice: as short as can be, since a lab model reads every character with a vocabulary of some
    # hundred tokens; the letter follows the value, then the marker line (lab study).
    "lab": Template("Q: {stem} {options}\n", "{letter}) {text}", " ", "Solution:", "Answer:", "Steps:", " "),
    # Choice: plain text for all real models (three of the ten have no chat template); issue E adds chat.
    "plain": Template(
        "Question: {stem}\nAnswer Choices: {options}\n",
        "({letter}) {text}",
        " ",
        "Let's think step by step and finish with 'The answer is X'.\nSolution:",
        "Give the letter only.\nAnswer:",
        "Ask and answer one sub-question at a time, as 'Q1: ... A1: ... Q2: ... A2: ...'. The last one is "
        "the question itself, and its answer finishes with 'The answer is X'.\nSteps:",
        " ",
        thoughts="Solve it in short steps, each on a line of its own; the last line is 'The answer is X'.\n"
        "Solution:",
        asking="Ask a simpler sub-question on a line 'Q1: ...' and answer it on the next line 'A1: ...', then"
        " the next one. The last sub-question repeats the question itself; its answer ends with"
        " 'The answer is X'.\nSteps:",
        rephrase="Write the question again in one line: first every condition and number, then what is asked."
        " Leave the answer choices out.\nRephrased question:",
    ),
}


def render_question(question: Question, template: str = "lab") -> str:
    """Stem and options, without a cue."""
    form = TEMPLATES[template]
    options = form.option_join.join(
        form.option.format(letter=letter, text=text)
        for letter, text in zip(LETTERS, question.options, strict=True)
    )
    # Cut and joined, not formatted: braces in a question must survive.
    before, _, rest = form.question.partition("{stem}")
    between, _, after = rest.partition("{options}")
    return f"{before}{question.question}{between}{options}{after}"


def prompt(
    question: Question, *, template: str = "lab", demo: Item | None = None, cue: str = "reason"
) -> str:
    """The prompt of a question; with ``demo`` (one-shot) an example precedes it, solved as the cue asks.

    Args:
        question: what is asked.
        template: ``lab`` or ``plain``.
        demo: an item with a rationale, outside all splits.
        cue: ``reason`` (chain of thought), ``letter`` (bare letter) or ``steps`` (sub-questions).
    """
    form = TEMPLATES[template]
    ending: str = getattr(form, cue)
    tail = render_question(question, template) + ending
    if demo is None:
        return tail
    shown = render_question(demo, template) + ending + form.join
    shown += demo.answer if cue == "letter" else solution(demo)
    return f"{shown}\n\n{tail}"


def solution(item: Item) -> str:
    """The reasoning of an item as a response: rationale, then the marker line.

    Raises:
        ValueError: when the item has no rationale.
    """
    if item.rationale is None:
        raise ValueError(f"item {item.id} has no rationale")
    return f"{item.rationale.rstrip()}\nThe answer is {item.answer}"


def answer_only(item: Item) -> str:
    """The local target ``answer_only``: the option's text and its letter, no reasoning.

    Choice: text and letter, not the bare letter alone: with the bare letter a lab model's Standalone
    accuracy is meaninglessly low (lab study, section 1).
    """
    return f"{option_text(item)} {item.answer}.\nThe answer is {item.answer}"


def option_text(item: Item) -> str:
    """The text of the right option."""
    return item.options[LETTERS.index(item.answer)]


def join(response: str, template: str = "lab") -> str:
    """A stored response as the text that follows the prompt."""
    return TEMPLATES[template].join + response.strip()
