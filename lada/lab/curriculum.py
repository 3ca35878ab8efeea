"""Pre-training samples: first only letter look-ups, then a mixture of all skills.

Choice (lab study, section 2): models that see solved questions before they can look up an option's letter
stay at chance; so the first phase is only look-ups. Three in ten solved questions stand behind a demo, half
of those behind the very demo of the one-shot setting.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from lada.data import lab
from lada.data.lab_skills import lookup, trace, writing_prompt, written
from lada.data.lab_words import stream
from lada.prompts import prompt, solution
from lada.records import Item

DEMO_SHARE, FIXED_SHARE = 0.3, 0.5


@dataclass(frozen=True)
class Mixture:
    """What a model is taught.

    Attributes:
        weights: dataset -> domain -> weight; domains that are left out are never seen.
        lookup, letter, steps, write: shares of the other skills; the rest is chain of thought.
    """

    weights: Mapping[str, Mapping[str, float]]
    lookup: float = 0.1
    letter: float = 0.05
    steps: float = 0.08
    write: float = 0.0


@dataclass
class Curriculum:
    """An endless stream of (prompt, response) pairs.

    Args:
        mixture: what is taught in the second phase.
        seed: decides the stream.
    """

    mixture: Mixture
    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = stream("curriculum", self.seed)

    def first_phase(self, count: int) -> list[tuple[str, str]]:
        """Look-ups only."""
        return [lookup(self.rng) for _ in range(count)]

    def second_phase(self, count: int) -> list[tuple[str, str]]:
        """The mixture, in random order."""
        mix, rng = self.mixture, self.rng
        pairs = self.first_phase(round(count * mix.lookup))
        datasets = list(mix.weights)
        total = {name: sum(mix.weights[name].values()) for name in datasets}
        for dataset, share in lab.apportion(total, count - len(pairs)).items():
            # Twice as many as needed: demos and models for writing come from the same draw.
            items = lab.generate(
                dataset, mix.weights[dataset], 2 * share, str(rng.getrandbits(64)), held_out=False
            )
            spare = _by_domain(items[share:])
            pairs += [self._pair(dataset, item, spare) for item in items[:share]]
        rng.shuffle(pairs)
        return pairs

    def _pair(self, dataset: str, item: Item, spare: dict[str, list[Item]]) -> tuple[str, str]:
        mix, rng = self.mixture, self.rng
        kind = rng.random()
        if kind < mix.letter:
            return prompt(item, cue="letter"), item.answer
        if kind < mix.letter + mix.steps:
            return prompt(item, cue="steps"), trace(item)
        same = spare.get(item.domain)
        if kind < mix.letter + mix.steps + mix.write and same:
            bad = rng.choice(spare[rng.choice(list(spare))])
            return writing_prompt(bad, rng.choice(same)), written(item)
        demo = None
        if rng.random() < DEMO_SHARE:
            fixed = rng.random() < FIXED_SHARE or not spare
            demo = lab.demo(dataset) if fixed else rng.choice(spare[rng.choice(list(spare))])
        return prompt(item, demo=demo), solution(item)


def _by_domain(items: list[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.domain, []).append(item)
    return found
