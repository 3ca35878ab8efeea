"""Preference pairs of a party: the partner's text is preferred, its own is not (paper, Eqs. 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lada.answers import extract_letter
from lada.language_model import LanguageModel
from lada.party import Party
from lada.prompts import join
from lada.records import Response
from lada.training import Example, Term

OWN = 0
"""Index of the party's own text among an example's responses: rejected in every term."""
LEAST_REWARD = 1e-3
Weighting = Literal["reward", "uniform", "softmax", "size", "none"]


@dataclass(frozen=True)
class TextPair:
    """Two texts on one public sample; ``same``: equal but for white space, so there is nothing to learn."""

    id: str
    partner: str
    chosen: Response
    rejected: Response

    @property
    def same(self) -> bool:
        """Whether both texts are the same words."""
        return self.chosen.text.split() == self.rejected.text.split()


def text_pairs(
    selected: Mapping[str, Sequence[str]],
    theirs: Mapping[str, Mapping[str, Response]],
    own: Mapping[str, Response],
) -> list[TextPair]:
    """Pairs of all partners, by sample id, then partner; a sample without both texts makes no pair.

    Args:
        selected: partner -> ids selected for this round.
        theirs: partner -> id -> the partner's text. own: id -> the party's text.
    """
    found = [
        TextPair(name, partner, theirs[partner][name], own[name])
        for partner, ids in selected.items()
        for name in ids
        if name in theirs[partner] and name in own
    ]
    return sorted(found, key=lambda pair: (pair.id, pair.partner))


def right_texts(party: Party, texts: Mapping[str, Response]) -> set[str]:
    """Ids whose text gives the sealed answer: for modes named ``oracle`` alone.

    Raises:
        ConfigError: in any other run.
    """
    answers = party.answers
    return {
        name
        for name, text in texts.items()
        if extract_letter(text.text, party.public[name].options) == answers[name]
    }


def make_examples(
    party: Party,
    model: LanguageModel,
    pairs: Sequence[TextPair],
    weights: Mapping[tuple[str, str], float],
) -> list[Example]:
    """One example per sample: the own text once, every partner's text, one term per pair.

    Args:
        weights: (id, partner) -> w of Eq. 4.
    """
    grouped: dict[str, list[TextPair]] = {}
    for pair in pairs:
        grouped.setdefault(pair.id, []).append(pair)
    examples = []
    for name, members in grouped.items():
        texts = [members[0].rejected.text, *(pair.chosen.text for pair in members)]
        terms = [
            Term(pair.partner, chosen=place, rejected=OWN, weight=weights[name, pair.partner])
            for place, pair in enumerate(members, start=1)
        ]
        examples.append(
            Example(
                id=name,
                prompt=tuple(model.prompt_ids(party.prompt(party.question(name)))),
                responses=tuple(
                    tuple(model.response_ids(join(text, party.config.template))) for text in texts
                ),
                terms=tuple(terms),
            )
        )
    return examples


def overlap_weights(
    pairs: Sequence[TextPair],
    kind: Weighting,
    *,
    rewards: Mapping[tuple[str, str], float | None],
    temperature: float,
) -> dict[tuple[str, str], float]:
    """The w of Eq. 4: 1 where one pair has a sample, sums to 1 where several share it, 1 each with ``none``.

    Choice: weights follow the predicted reward of each pair's filter, the only pairwise importance that the
    paper defines; where any pair has no prediction yet (round 1) they are equal.

    Args:
        kind: ``reward`` (proportional, at least 1e-3), ``softmax`` (of reward / ``temperature``), ``size``
            (number of the partner's pairs), ``uniform``, or ``none``.
        rewards: (id, partner) -> predicted reward.
    """
    sizes: dict[str, int] = {}
    grouped: dict[str, list[str]] = {}
    for pair in pairs:
        sizes[pair.partner] = sizes.get(pair.partner, 0) + 1
        grouped.setdefault(pair.id, []).append(pair.partner)
    found: dict[tuple[str, str], float] = {}
    for name, partners in grouped.items():
        importance = _importance(name, partners, kind, rewards, sizes, temperature)
        total = sum(importance)
        scale = 1.0 if kind == "none" or len(partners) == 1 else 1 / total
        for partner, value in zip(partners, importance, strict=True):
            found[name, partner] = 1.0 if len(partners) == 1 else value * scale
    return found


def _importance(
    name: str,
    partners: Sequence[str],
    kind: Weighting,
    rewards: Mapping[tuple[str, str], float | None],
    sizes: Mapping[str, int],
    temperature: float,
) -> list[float]:
    if kind == "size":
        return [float(sizes[partner]) for partner in partners]
    predicted = [rewards[name, partner] for partner in partners]
    known = [value for value in predicted if value is not None]
    if kind in ("uniform", "none") or len(known) < len(predicted):
        return [1.0] * len(partners)
    if kind == "reward":
        return [max(value, LEAST_REWARD) for value in known]
    top = max(known)
    return [math.exp((value - top) / temperature) for value in known]
