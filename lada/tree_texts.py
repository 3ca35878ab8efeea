"""Partial solutions of the tree search as texts, and what a completion of one answers.

A partial solution is a list of steps: thoughts, and sub-questions with their answers. It is shown to a model
in one of two forms, both of which begin a response: the solution, in which a sub-question reads like any
other step, and the trace of sub-questions.

Choices: a step ends at the form's own delimiter, never at words such as "Question" that options may hold. A
sub-question is the last one when it repeats the last sentence of the question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lada.answers import extract_letter
from lada.generation import Generated
from lada.records import Letter, Question


@dataclass(frozen=True)
class Thought:
    """One step: a thought, or (``ask``) a sub-question with its answer ``text``."""

    text: str
    ask: str | None = None


@dataclass(frozen=True)
class Form:
    """How a template writes steps down.

    Attributes:
        end: what ends a thought or a sub-answer. between: what stands between two steps.
        equals: between a sub-question and its answer in a solution.
        asked: between the two in a trace: ``Q1: ask`` + ``asked`` + ``A1: text`` + ``end``.
        ask_stop: what ends a sub-question when a model writes it.
    """

    end: str
    between: str
    equals: str
    asked: str
    ask_stop: str

    @property
    def stop(self) -> str:
        """What ends a thought or a sub-answer when a model writes it and goes on."""
        return self.end + self.between

    def solution(self, steps: Iterable[Thought], *more: str) -> str:
        """Steps as a solution, then (the beginning of) one more."""
        said = [f"{self._said(step)}{self.end}" for step in steps]
        return self.between.join([*said, *more])

    def answered(self, ask: str, text: str) -> str:
        """A sub-question with (the beginning of) its answer, as a step of a solution."""
        return f"{ask}{self.equals}{text}"

    def trace(self, steps: Sequence[Thought], ask: str | None = None) -> str:
        """Sub-questions and answers up to where the next question, or the answer to ``ask``, begins."""
        said = [
            f"Q{number}: {step.ask}{self.asked}A{number}: {step.text}{self.end}"
            for number, step in enumerate(steps, start=1)
        ]
        number = len(steps) + 1
        begun = f"Q{number}:" if ask is None else f"Q{number}: {ask}{self.asked}A{number}:"
        return self.between.join([*said, begun])

    def _said(self, step: Thought) -> str:
        return step.text if step.ask is None else self.answered(step.ask, step.text)


FORMS = {
    "lab": Form(end=".", between=" ", equals=" = ", asked="? ", ask_stop="?"),
    "plain": Form(end="\n", between="", equals=" ", asked="\n", ask_stop="\n"),
}
"""Template -> form; the lab's is what lab models were pre-trained on (`lada.data.lab_skills.trace`)."""


@dataclass(frozen=True)
class Answer:
    """What a completion answers.

    Attributes:
        key: equal for equal answers. added: what was written; text: the whole response.
        letter: where it ended the solution.
    """

    key: str
    added: str
    text: str
    letter: Letter | None


def read_answer(one: Generated, question: Question) -> Answer | None:
    """A full answer where the completion ended by itself, a sub-answer where it stopped at a delimiter.

    None when it hit the token limit, ended without a letter, or is empty.
    """
    if one.finished:
        letter = extract_letter(one.text, question.options)
        return None if letter is None else Answer(f"letter {letter}", one.added, one.text, letter)
    if one.stopped and one.added:
        return Answer(answer_key(one.added), one.added, one.text, None)
    return None


def most_frequent(answers: Iterable[Answer | None]) -> tuple[Answer, int] | None:
    """The first of the most frequent answers and how often it came; None where there is no answer.

    Of equally frequent ones, the one that came first.
    """
    known = [answer for answer in answers if answer is not None]
    if not known:
        return None
    key, count = Counter(answer.key for answer in known).most_common(1)[0]
    return next(answer for answer in known if answer.key == key), count


def answer_key(text: str) -> str:
    """What makes two sub-answers the same: their last number, or else all their words."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return numbers[-1] if numbers else " ".join(_words(text))


def restates(ask: str, stem: str) -> bool:
    """Whether a sub-question holds the last sentence of the question, word for word.

    Only the stem counts, so full stops inside options cut nothing; a stem without words is never restated.
    """
    sentences = [words for part in re.split(r"(?<=[.!?])\s+", stem) if (words := _words(part))]
    return bool(sentences) and f" {' '.join(sentences[-1])} " in f" {' '.join(_words(ask))} "


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
