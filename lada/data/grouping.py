"""Which questions are versions of each other: keys of copies and of templates, connected groups."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from lada.data.parsing import normalise_option

_PASSAGE_WORDS = 40  # from this length on, a paragraph counts as a passage
_OPENING_WORDS = 30  # two passages are the same when they begin with the same words
_NUMBER = re.compile(r"\d+(?:[.,:/^]\d+)*")
# Operators count (x + y is not x - y); a hyphen between words does not.
_WORD = re.compile(r"[^\W_]+|[#+*/^<>=%×÷√−]|(?<=\b[a-z0-9])-(?=[a-z0-9]\b)|(?<=\s)-(?=\s)")
_SPEAKER = re.compile(r"^\s*[A-Za-z]{1,12}\s*:\s*")


def stem_key(question: str) -> str:
    """Questions with the same key are copies: letters and digits alone, no case."""
    return "stem:" + (_words(question) or question)


def template_key(question: str) -> str:
    """Questions with the same key are numeric variants: as `stem_key`, numbers masked."""
    return "template:" + (_words(_NUMBER.sub(" # ", question.replace(",", ""))) or question)


def wording_key(question: str, options: Sequence[str]) -> str | None:
    """One question under several prompts: its last sentence with its set of options.

    None where that says too little: fewer than three options, fewer than five words, or numbers in the stem
    (which make variants, not copies).
    """
    asked = _last_sentence(question)
    if len(options) < 3 or len(asked.split()) < 5 or re.search(r"\d", question):
        return None
    return "wording:" + asked + "|" + "|".join(sorted(normalise_option(option) for option in options))


def passage_key(question: str) -> str | None:
    """The passage a question is about, by its first words; None where there is no passage."""
    longest = max(question.split("\n"), key=len)
    words = _words(_NUMBER.sub(" # ", _SPEAKER.sub("", longest))).split()
    return "passage:" + " ".join(words[:_OPENING_WORDS]) if len(words) >= _PASSAGE_WORDS else None


def group_keys(question: str, options: Sequence[str], group: str = "") -> tuple[str, ...]:
    """All keys of a question; questions that share one of them belong to one group."""
    found = (
        f"file:{group}" if group else None,
        template_key(question),
        wording_key(question, options),
        passage_key(question),
    )
    return tuple(key for key in found if key is not None)


def components(keys: Iterable[Sequence[str]]) -> list[str]:
    """A group name for each question: equal where shared keys link questions, over any number of steps.

    Args:
        keys: for each question its keys, at least one.

    Returns:
        Names of 16 hex digits. They depend on the keys of the group alone, not on the order of questions.
    """
    keyed = [tuple(each) for each in keys]
    parent: dict[str, str] = {}
    for each in keyed:
        roots = sorted({_root(parent, key) for key in each})
        for root in roots[1:]:
            parent[root] = roots[0]
    return [hashlib.sha256(_root(parent, each[0]).encode()).hexdigest()[:16] for each in keyed]


def _root(parent: dict[str, str], key: str) -> str:
    while (above := parent.setdefault(key, key)) != key:
        parent[key] = parent[above]
        key = above
    return key


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _last_sentence(question: str) -> str:
    sentences = [part for part in re.split(r"(?<=[.?!])\s+|\n+", question) if _words(part)]
    return _words(sentences[-1]) if sentences else ""
