"""From any number of options to exactly four, and from one right letter to another.

Choice (the paper is silent; data page, section 4): where the right option is among the first four, the others
go and nothing is relabelled; else seeded random distractors go, order is kept, and the right one becomes D.
A rationale that names letters is dropped when letters move. "None of these" and its kind keep their place:
such rows are cut, but never permuted.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from lada.data.parsing import LABELS, Dropped
from lada.records import LETTERS, Letter

_SHORT = 80  # characters; a longer option is no list of letters
_COLLECTIVE = re.compile(
    r"\b(?:none|all|both|neither|either|any|some|two|one|each)\s+(?:(?:of|the)\s+)*"
    r"(?:these|those|them|above|below|other|options?|choices?|answers?)\b"
    r"|^\W*(?:none|all|both|neither|either)\W*$"
    r"|\b(?:above|below)\b|not enough information|cannot be determined|can't be determined",
    re.I,
)
_LETTERS_ALONE = re.compile(
    r"\W*(?:(?:only|both|neither|either|options?)\s+)*[A-J](?:\W+(?:(?:and|or|only|both|nor)\W+)*[A-J]\b)*\W*(?:only)?\W*",
    re.I,
)
_NAMED = re.compile(
    r"\b(?:options?|choices?|answers?|alternatives?)\b[\s:(\[=\-.]*(?:is\s+)?[(\[]?[A-Ja-j]\b|\([A-Ja-j]\)"
    r"|(?<![\w'’])[A-J](?![\w'’])|\bfor [a-e] ?:|\b[a-e] \)"
)
_NAMED_IN_STEM = re.compile(r"\b(?:options?|choices?)\s*\(?[A-J]\b|\([A-E]\)")


@dataclass(frozen=True)
class FourOptions:
    """A question cut to four options.

    Attributes:
        answer: index of the right option, 0 to 3.
        rationale: None when there was none, or when it names letters that have moved.
        movable: options may be put in another order.
        relabelled: the right option has another letter than in the file.
    """

    options: tuple[str, ...]
    answer: int
    rationale: str | None
    movable: bool
    relabelled: bool

    @property
    def letter(self) -> Letter:
        """The letter of the right option."""
        return LETTERS[self.answer]


def names_letters(text: str) -> bool:
    """Whether a text may refer to options by their letters (errs on the side of yes)."""
    return _NAMED.search(text) is not None


def cut_to_four(
    question: str, options: tuple[str, ...], answer: str, rationale: str | None, *, seed: int
) -> FourOptions:
    """Cut a question to four options.

    Raises:
        Dropped: fewer than four options, or letters would move that the question or its options refer to.
    """
    if len(options) < 4:
        raise Dropped("fewer-than-four-options")
    gold = LABELS.index(answer)
    refers = (
        any(len(o) <= _SHORT and _LETTERS_ALONE.fullmatch(o) for o in options)
        or _NAMED_IN_STEM.search(question) is not None
    )
    if refers and len(options) > 4:
        raise Dropped("options-refer-to-letters")
    movable = not refers and not any(_COLLECTIVE.search(option) for option in options[:4])
    if gold < 4:
        return FourOptions(options[:4], gold, rationale, movable, relabelled=False)
    distractors = [i for i in range(len(options)) if i != gold]
    kept = sorted([*random.Random(seed).sample(distractors, 3), gold])
    chosen = tuple(options[i] for i in kept)
    movable = not refers and not any(_COLLECTIVE.search(option) for option in chosen)
    return FourOptions(chosen, kept.index(gold), _kept(rationale), movable, relabelled=True)


def move_answer(cut: FourOptions, letter: Letter) -> FourOptions:
    """The right option changes places with the one at ``letter``."""
    assert cut.movable, "options of this question must keep their order"
    target = LETTERS.index(letter)
    options = list(cut.options)
    options[cut.answer], options[target] = options[target], options[cut.answer]
    kept = _kept(cut.rationale)
    return replace(cut, options=tuple(options), answer=target, rationale=kept, relabelled=True)


def _kept(rationale: str | None) -> str | None:
    return None if rationale is not None and names_letters(rationale) else rationale
