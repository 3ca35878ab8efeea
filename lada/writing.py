"""New questions by a language model: requests with contrasting examples, and what a reply must be to be kept.

Baselines, section 5: bad examples first, then good ones; ask for one that is better than the good. A reply is
kept when it is a whole question with a solution, when the model, asked the new question afresh, finds the
same letter, and when it is no near-copy. Examples are joined to the request, never formatted into it: braces
in a question must survive.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lada.answers import extract_letter
from lada.config import GenerationOptions, derive_seed
from lada.data.cutting import cut_to_four, names_letters
from lada.data.lab_skills import parse_written, writing_prompt
from lada.data.parsing import Dropped
from lada.embedding import Embed, question_text
from lada.generation import generate
from lada.language_model import LanguageModel
from lada.prompts import render_question, solution
from lada.records import LETTERS, Item, Letter, Question
from lada.resume import Resume
from lada.voting import Rows

Examples = tuple[Sequence[Question], Sequence[Question]]
"""Bad and good examples; none of the first in the first step, when nobody has voted yet."""
REASONS = ("unfinished", "malformed", "inconsistent", "disagreed", "duplicate")
"""Why a reply is not kept, in the order in which it is tested."""


class Form(NamedTuple):
    """How a tier's models are asked for a question, and how their reply is read.

    Attributes:
        request: examples and the number of the request -> prompt.
        parse: reply -> item; raises `Dropped` with one of `REASONS`.
    """

    request: Callable[[Examples, int], str]
    parse: Callable[[str], Item]


# -- the lab's form


def _lab_request(examples: Examples, number: int) -> str:
    """One bad and one good example, since that is what lab models were taught."""
    bad, good = examples
    return writing_prompt((bad or good)[-1], good[0])


def _lab_parse(reply: str) -> Item:
    item = parse_written(reply, "new")
    if item is None:
        raise Dropped("malformed")
    # "… 17 - 3 = 14 C.": the value that was worked out must be the option that the letter names.
    value = item.options[LETTERS.index(item.answer)]
    if not (item.rationale or "").endswith(f"= {value} {item.answer}."):
        raise Dropped("inconsistent")
    return item


# -- the form for real models

_TASK = (
    "Write one new multiple-choice question that calls for several steps of reasoning, with four options of "
    "which exactly one is right, and work out its solution. Use exactly the layout of the examples."
)
_VARIANTS = (
    "Compare the bad examples with the good ones, then write a question that is better than the good ones.",
    "Find out what the good examples have and the bad ones lack; write a question that has more of it.",
    "The good examples lie between the bad ones and what is wanted: go on in that direction.",
    "Stay close to the subject of the good examples, keep away from the bad ones, and tell another story.",
    "Write a question that somebody who liked the good examples would like even more, with other numbers.",
    "Ask about something that no example asks about, in the manner of the good ones.",
)
_PLAIN = re.compile(
    r"\s*(?:Question:)?\s*(?P<stem>.+?)\s*\n\s*Answer Choices:\s*"
    r"\(A\)\s*(?P<A>.+?)\s*\(B\)\s*(?P<B>.+?)\s*\(C\)\s*(?P<C>.+?)\s*\(D\)\s*(?P<D>[^\n]+?)\s*\n"
    r"\s*Solution:\s*(?P<rationale>.+?)\s*The answer is:?\s*\(?(?P<letter>[ABCD])\b",
    re.DOTALL,
)


def _plain_request(examples: Examples, number: int) -> str:
    parts = [_TASK]
    for name, shown in zip(("Bad", "Good"), examples, strict=True):
        parts += [f"{name} example {place}:\n{_shown(one)}" for place, one in enumerate(shown, start=1)]
    if examples[0]:
        parts.append(_VARIANTS[number % len(_VARIANTS)])
    return "\n\n".join(parts) + "\n\nNew example:\nQuestion:"


def _shown(question: Question) -> str:
    text = render_question(question, "plain")
    if not isinstance(question, Item) or question.rationale is None:
        return text
    return f"{text}Solution: {solution(question)}"


def _plain_parse(reply: str) -> Item:
    match = _PLAIN.match(reply)
    if match is None:
        raise Dropped("malformed")
    return Item(
        id="new",
        question=match["stem"],
        options=tuple(match[letter] for letter in LETTERS),
        answer=LETTERS["ABCD".index(match["letter"])],
        rationale=match["rationale"],
    )


def _whole(item: Item) -> Item:
    texts = [" ".join(text.split()) for text in (*item.options, item.question, item.rationale or "")]
    if len(set(texts[:4])) < 4 or "" in texts:
        raise Dropped("malformed")
    return item


FORMS = {"lab": Form(_lab_request, _lab_parse), "plain": Form(_plain_request, _plain_parse)}
"""By template (`lada.prompts.TEMPLATES`)."""


# -- order of options


def without_letter(rationale: str, letter: Letter) -> str:
    """A rationale without the letter that it closes with, if it does ("… = 14 C." of the lab)."""
    return rationale.removesuffix(f" {letter}.")


def is_movable(item: Item) -> bool:
    """Whether the options may be put in another order: nothing but the closing letter refers to letters."""
    rationale = without_letter(item.rationale or "", item.answer)
    cut = cut_to_four(item.question, item.options, item.answer, None, seed=0)
    return cut.movable and not names_letters(rationale)


def reordered(item: Item, letter: Letter, rng: random.Random) -> Item:
    """The item with its right option at ``letter`` and the others in random order behind and before it."""
    place = LETTERS.index(letter)
    right = item.options[LETTERS.index(item.answer)]
    others = [option for option in item.options if option != right]
    rng.shuffle(others)
    rationale = item.rationale or ""
    kept = without_letter(rationale, item.answer)
    return item.model_copy(
        update={
            "options": (*others[:place], right, *others[place:]),
            "answer": letter,
            "rationale": rationale if kept == rationale else f"{kept} {letter}.",
        }
    )


# -- asking and keeping


@dataclass
class Writer:
    """Asks a model for questions and keeps those that pass.

    Attributes:
        prompt: a question as it is put to the model to be solved.
        writing, solving: decoding of new questions and of the independent solution.
        embed: of `question_text`.
        duplicate: cosine above which a question is a near-copy.
        asks: how often a place is asked for before it stays empty.
        phase: begins a phase of a progress display, as `Reporter.phase` does.
        resume: may pause writing and solving after any token and go on there.
    """

    model: LanguageModel
    form: Form
    prompt: Callable[[Question], str]
    writing: GenerationOptions
    solving: GenerationOptions
    embed: Embed
    duplicate: float
    asks: int
    phase: Callable[[str, int], Callable[[int, str], None]]
    resume: Resume | None = None

    def write(
        self,
        places: int,
        draw: Callable[[random.Random], Examples],
        *,
        known: Sequence[Question],
        letters: Sequence[Letter],
        seed: int,
    ) -> tuple[list[Item], Counter[str]]:
        """Fill as many places as the model's replies allow; a place is never filled with a copy.

        Choice: "re-ask twice, then discard" asks for another question, not for another solution: asking the
        same question until the letters agree would keep what is wrong.

        Args:
            draw: examples of one request.
            known: questions that a new one must differ from.
            letters: answers of the questions so far; new ones are given the rarest letters.

        Returns:
            The kept items, and how many replies were ``asked`` for, ``accepted`` and not kept, by reason.
        """
        kept: list[Item] = []
        vectors = self.embed([question_text(question) for question in known])
        counts: Counter[str] = Counter(dict.fromkeys(("asked", "accepted", *REASONS), 0))
        for ask in range(self.asks):
            wanted = places - len(kept)
            if not wanted:
                break
            rng = random.Random(derive_seed(seed, "examples", ask))
            requests = [self.form.request(draw(rng), number) for number in range(wanted)]
            new = self._agreed(self._parsed(requests, derive_seed(seed, "write", ask), counts), counts, rng)
            own = self.embed([question_text(item) for item in new])
            for place, item in enumerate(new):
                vector = own[place : place + 1]
                if self._is_copy(vector, vectors):
                    counts["duplicate"] += 1
                    continue
                vectors = np.concatenate([vectors, vector])
                kept.append(balanced(item, [*letters, *(one.answer for one in kept)], rng))
            counts["asked"] += wanted
        counts["accepted"] = len(kept)
        return kept, counts

    def _parsed(self, requests: Sequence[str], seed: int, counts: Counter[str]) -> list[Item]:
        tick = self.phase("new questions", len(requests))
        replies = generate(
            self.model,
            requests,
            self.writing,
            seed=seed,
            progress=lambda done, total: tick(done, ""),
            resume=self.resume,
        )
        found = []
        for reply in replies:
            try:
                found.append(_whole(self.form.parse(reply.text)))
            except Dropped as drop:
                counts[drop.reason if reply.finished else "unfinished"] += 1
        return found

    def _agreed(self, items: Sequence[Item], counts: Counter[str], rng: random.Random) -> list[Item]:
        """Those whose letter an independent solution finds too.

        The options are shuffled before: agreement on a letter that both prefer anyway would say nothing.
        """
        shuffled = [reordered(one, rng.choice(LETTERS), rng) if is_movable(one) else one for one in items]
        tick = self.phase("solving them", len(items))
        solved = generate(
            self.model,
            [self.prompt(item) for item in shuffled],
            self.solving,
            progress=lambda done, total: tick(done, ""),
            resume=self.resume,
        )
        agreed = [
            item
            for item, one in zip(shuffled, solved, strict=True)
            if one.finished and extract_letter(one.text, item.options) == item.answer
        ]
        counts["disagreed"] += len(items) - len(agreed)
        return agreed

    def _is_copy(self, vector: Rows, others: Rows) -> bool:
        return bool(len(others)) and float((others @ vector[0]).max()) > self.duplicate


def balanced(item: Item, letters: Sequence[Letter], rng: random.Random) -> Item:
    """The item with its answer moved to the letter that occurs least among ``letters``; ties by chance."""
    if not is_movable(item):
        return item
    counts = Counter(letters)
    fewest = min(counts[letter] for letter in LETTERS)
    return reordered(item, rng.choice([one for one in LETTERS if counts[one] == fewest]), rng)
