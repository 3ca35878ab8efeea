r"""Socratic reasoning as text: sub-questions with their solutions, ``Q1: … A1: … Q2: … A2: …``.

A trace is what a model writes at the cue ``steps`` of `lada.prompts`. The last solution carries the marker
line with the letter. In a dialogue one model asks and solves in turn; ``Q1:`` and ``A1:`` are its role tags
(baselines, section 7).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lada.answers import has_marker
from lada.config import GenerationOptions
from lada.generation import Generated, generate
from lada.language_model import LanguageModel
from lada.prompts import join
from lada.records import Question
from lada.resume import Resume

_LABEL = re.compile(r"(?<!\S)(?:(?P<asks>Q|Question |Sub-question )|(?:A|Answer ))(?P<number>[0-9]{1,2}): *")


@dataclass(frozen=True)
class SubStep:
    """A sub-question and its solution; the solution of the last one ends with the marker line."""

    question: str
    solution: str


@dataclass(frozen=True)
class Piece:
    """What one role says in a dialogue: ``said`` is the response to the prompt followed by ``context``."""

    context: str
    said: str


@dataclass(frozen=True)
class DialogueLimits:
    """When a dialogue ends for lack of an end: after so many pairs, or tokens of one piece."""

    max_steps: int
    question_tokens: int
    solution_tokens: int


def parse_trace(text: str) -> list[SubStep] | None:
    """The pairs of a trace, or None when it is not well-formed.

    Well-formed: nothing before the first label; labels Q1, A1, Q2, A2, … in this order, none of them empty;
    the marker line ("The answer is C") in the last solution and in no other.
    """
    labels = list(_LABEL.finditer(text))
    expected = [(role, number) for number in range(1, len(labels) // 2 + 1) for role in "QA"]
    found = [("Q" if label["asks"] else "A", int(label["number"])) for label in labels]
    if not labels or found != expected or text[: labels[0].start()].strip():
        return None
    ends = [*(label.start() for label in labels[1:]), len(text)]
    parts = [text[label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]
    steps = [SubStep(asked, solved) for asked, solved in zip(parts[::2], parts[1::2], strict=True)]
    marked = [has_marker(step.solution) for step in steps]
    if not all(parts) or marked != [False] * (len(steps) - 1) + [True]:
        return None
    return steps


def render_trace(steps: Sequence[SubStep]) -> str:
    """Pairs as one text, the same whatever white space the model wrote between them."""
    return " ".join(f"{_asks(n)} {s.question} {_solves(n)} {s.solution}" for n, s in enumerate(steps, 1))


def as_dialogue(question: Question, text: str) -> list[SubStep]:
    """The pairs of a text; a plain chain of thought is one pair that restates the question.

    Choice: so a model that asks before it solves also learns where there is nothing to take apart.
    """
    return parse_trace(text) or [SubStep(question.question, text.strip())]


def pieces(steps: Sequence[SubStep], template: str) -> list[Piece]:
    """What asker and solver say, in turn: L_QG learns the even ones, L_QA the odd ones (from 0).

    The context of a piece is everything before it, and its role tag.
    """
    found, before = [], ""
    for number, step in enumerate(steps, start=1):
        for tag, said in ((_asks(number), step.question), (_solves(number), step.solution)):
            before += join(tag, template)
            found.append(Piece(before, join(said, template)))
            before += join(said, template)
    return found


@dataclass
class _Talk:
    """One dialogue as far as it got."""

    prompt: str
    said: str = ""
    last: str = ""
    tokens: int = 0
    total: float = 0.0
    finished: bool = False
    live: bool = True

    def take(self, tag: str, piece: Generated, template: str) -> None:
        self.said += join(tag, template) + join(piece.text, template)
        self.last = piece.text
        self.tokens += piece.num_tokens
        self.total += piece.confidence * piece.num_tokens
        self.live = piece.finished


def converse(
    model: LanguageModel,
    prompts: Sequence[str],
    options: GenerationOptions,
    limits: DialogueLimits,
    *,
    template: str,
    progress: Callable[[int, int], None] | None = None,
    resume: Resume | None = None,
) -> list[Generated]:
    """Let a model ask and solve in turn until a solution carries the marker line.

    All dialogues go on side by side, one piece a pass. Choice: the end is the solver's to say, by the marker
    line, since only the last solution has one; a dialogue without it ends after ``max_steps`` pairs, or with
    a piece that does not end within its tokens, and counts as unfinished.

    Args:
        progress: called with (ended, all) dialogues after each pair.
        resume: may pause this after any token and go on there.

    Returns:
        Per prompt the last thing said as ``text``; tokens and confidence are of the whole dialogue.
    """
    talks = [_Talk(prompt) for prompt in prompts]
    for number in range(1, limits.max_steps + 1):
        if not any(talk.live for talk in talks):
            break
        turns = ((_asks(number), limits.question_tokens), (_solves(number), limits.solution_tokens))
        for tag, tokens in turns:
            live = [talk for talk in talks if talk.live]
            contexts = [talk.prompt + talk.said + join(tag, template) for talk in live]
            limited = options.model_copy(update={"max_new_tokens": tokens})
            said = generate(model, contexts, limited, resume=resume)
            for talk, piece in zip(live, said, strict=True):
                talk.take(tag, piece, template)
        for talk in talks:
            if talk.live and has_marker(talk.last):
                talk.finished, talk.live = True, False
        if progress is not None:
            progress(sum(not talk.live for talk in talks), len(talks))
    return [
        Generated(talk.last, talk.tokens, talk.finished, talk.total / max(1, talk.tokens)) for talk in talks
    ]


def _asks(number: int) -> str:
    return f"Q{number}:"


def _solves(number: int) -> str:
    return f"A{number}:"
