"""Mutual consistency of traces (baselines, section 8a): does another model, given the beginning, end alike?

The discriminator reads the first words of a trace and completes it several times; the trace is consistent if
enough completions give its answer. No reference answer is known here: answers are counted, never judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from lada.answers import extract_letter
from lada.config import Fraction, GenerationOptions, Options, derive_seed
from lada.generation import generate
from lada.language_model import LanguageModel
from lada.prompts import join
from lada.records import Letter, Question, Trace
from lada.resume import Resume

TraceName = tuple[str, int]
"""Sample id and place of a trace."""


class CheckOptions(Options):
    """The discriminator. Defaults: rStar's code (baselines, section 8b), but every question is checked.

    Choice: rStar does not check a question whose answer is sure, since the answer is all that it wants. Here
    the verdict says whether a client can follow the trace, so a sure answer needs one too.

    Attributes:
        masks: beginnings of different length that are completed, once each; half of them must lead to the
            trace's answer.
        shortest: share of the words in the shortest beginning.
        longest: share of the words in the longest.
        temperature: of the completions.
        skip_above: a question whose best answer has more confidence than this is not checked; 1 checks all;
            rStar: 0.999.
    """

    masks: Annotated[int, Field(ge=2)] = 4
    shortest: Fraction = 0.2
    longest: Fraction = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    skip_above: Fraction = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> CheckOptions:
        if self.longest < self.shortest:
            raise ValueError("longest must not be less than shortest")
        return self


@dataclass(frozen=True)
class Checked:
    """Verdicts by trace, how many questions were not asked about, and completions drawn."""

    verdicts: dict[TraceName, bool]
    skipped: int
    completions: int


def beginnings(text: str, options: CheckOptions) -> list[str]:
    """The beginnings of a trace that are completed: whole words, at least one.

    Args:
        text: the trace; a 10-word one gives, with 4 masks from 0.2 to 0.5, its first 2, 3, 4 and 5 words.
    """
    words = list(re.finditer(r"\S+", text))
    if not words:
        return [""] * options.masks
    stride = (options.longest - options.shortest) / (options.masks - 1)
    shares = [options.shortest + stride * number for number in range(options.masks)]
    # A hair more, so that 0.3 of 10 words is three words whatever the last bit says.
    counts = [max(1, math.floor(share * len(words) + 1e-9)) for share in shares]
    return [text[: words[count - 1].end()] for count in counts]


def is_consistent(letters: Sequence[Letter | None], answer: Letter) -> bool:
    """Whether at least half (rounded down) of the completions give the trace's answer (rStar's "mid")."""
    return sum(letter == answer for letter in letters) >= len(letters) // 2


def confidences(traces: Sequence[Trace]) -> dict[Letter, float]:
    """Answer -> share of all rewards that its traces have (of their number, where no trace has any).

    Args:
        traces: of one question.
    """
    weights = [trace.reward for trace in traces]
    if not sum(weights):
        weights = [1.0] * len(traces)
    found: dict[Letter, float] = {}
    for trace, weight in zip(traces, weights, strict=True):
        found[trace.letter] = found.get(trace.letter, 0.0) + weight
    return {letter: weight / sum(weights) for letter, weight in found.items()}


def choose(
    traces: Sequence[Trace], verdicts: Mapping[TraceName, bool] | None, *, most: int = 1
) -> list[Trace]:
    """The traces of one question to learn from: consistent, of the best answer, highest reward first.

    The best answer maximises confidence + survival rate, the share of its traces that are consistent, among
    answers with a consistent trace; equal answers: the one whose trace comes first. Without ``verdicts`` (the
    majority-only ablation) it maximises confidence alone, and every trace may be chosen.

    Choice: a question without a consistent trace gives nothing to learn; several traces of a question agree.

    Args:
        most: how many traces.
    """
    kept = [trace for trace in traces if verdicts is None or verdicts.get((trace.id, trace.place), False)]
    if not kept:
        return []
    score = confidences(traces)
    if verdicts is not None:
        for letter in score:
            survived = sum(trace.letter == letter for trace in kept)
            score[letter] += survived / sum(trace.letter == letter for trace in traces)
    best = max((trace.letter for trace in kept), key=lambda letter: score[letter])
    found = [trace for trace in kept if trace.letter == best]
    return sorted(found, key=lambda trace: (-trace.reward, trace.place))[:most]


def check(
    model: LanguageModel,
    traces: Mapping[str, Sequence[Trace]],
    questions: Mapping[str, tuple[Question, str]],
    options: CheckOptions,
    *,
    generation: GenerationOptions,
    template: str,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    resume: Resume | None = None,
) -> Checked:
    """Have a model complete the beginnings of all traces, in one batch.

    A question whose best answer has a confidence above ``skip_above`` is not asked about: the traces of that
    answer pass.

    Args:
        traces: sample id -> its traces.
        questions: sample id -> the question, and the prompt that puts it to the model.
        seed: a completion depends on it, the trace's name and the beginning's number alone.
        progress: called with (done, all) completions.
        resume: may pause this after any token and go on there.
    """
    sure = {name: _sure_answer(mine, options.skip_above) for name, mine in traces.items()}
    verdicts = {
        (trace.id, trace.place): trace.letter == sure[name] for name, mine in traces.items() for trace in mine
    }
    asked = [trace for name, mine in traces.items() if sure[name] is None for trace in mine]
    begun = [beginning for trace in asked for beginning in beginnings(trace.text, options)]
    drawn = generate(
        model,
        [questions[trace.id][1] for trace in asked for _ in range(options.masks)],
        generation.model_copy(update={"temperature": options.temperature}),
        seed=[
            derive_seed(seed, trace.id, trace.place, number)
            for trace in asked
            for number in range(options.masks)
        ],
        partials=[join(one, template) for one in begun],
        progress=progress,
        resume=resume,
    )
    for number, trace in enumerate(asked):
        own = drawn[number * options.masks : (number + 1) * options.masks]
        letters = [
            extract_letter(one.text, questions[trace.id][0].options) if one.finished else None for one in own
        ]
        verdicts[trace.id, trace.place] = is_consistent(letters, trace.letter)
    return Checked(verdicts, sum(answer is not None for answer in sure.values()), len(drawn))


def _sure_answer(traces: Sequence[Trace], above: float) -> Letter | None:
    return next((letter for letter, share in confidences(traces).items() if share > above), None)
