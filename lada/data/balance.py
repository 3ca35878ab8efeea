"""Fill parts of given sizes with groups of questions, every letter equally often in each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lada.data.cutting import FourOptions, move_answer
from lada.records import LETTERS, Letter


@dataclass(frozen=True)
class Candidate:
    """A question that may enter a part; ``keys`` link it to its group (`lada.data.grouping`)."""

    id: str
    question: str
    cut: FourOptions
    keys: tuple[str, ...]


Group = Sequence[Candidate]


@dataclass
class _Part:
    """A part under construction: ``short`` says how many of each letter are still missing."""

    size: int
    short: dict[Letter, int]
    taken: list[Candidate] = field(default_factory=list)
    spare: list[Candidate] = field(default_factory=list)

    def missing(self) -> int:
        return sum(self.short.values())

    def need(self, group: Group) -> float:
        """Share of the part that is missing, if the group holds a letter that it can use; else 0."""
        useful = any(self.short[candidate.cut.letter] for candidate in group)
        return self.missing() / self.size if useful else 0.0

    def add(self, group: Group) -> None:
        """The group becomes this part's: rows of missing letters enter, the others are kept in reserve."""
        for candidate in group:
            if self.short[candidate.cut.letter]:
                self.short[candidate.cut.letter] -= 1
                self.taken.append(candidate)
            elif candidate.cut.movable:
                self.spare.append(candidate)

    def fill_from_spare(self) -> None:
        """Give reserve rows the letters that are missing."""
        for letter in LETTERS:
            while self.short[letter] and self.spare:
                candidate = self.spare.pop(0)
                self.short[letter] -= 1
                moved = move_answer(candidate.cut, letter)
                self.taken.append(Candidate(candidate.id, candidate.question, moved, candidate.keys))


def quotas(size: int, extra: Sequence[Letter]) -> dict[Letter, int]:
    """How many of each letter: a quarter, and one more for the first ``size % 4`` letters of ``extra``."""
    return {letter: size // 4 + (letter in extra[: size % 4]) for letter in LETTERS}


def fill(
    groups: Sequence[Group], sizes: Mapping[str, int], extra: Sequence[Letter]
) -> dict[str, list[Candidate]] | None:
    """Give each group to at most one part, so that every part gets its size and its quota of letters.

    A group goes to the part that is emptiest among those that can use one of its letters, so parts fill up
    side by side and are alike (IID by group). Where letters run short, rows in reserve are permuted: first of
    the part's own groups, then of groups that no part could use.

    Args:
        groups: in the order in which they are given out.
        sizes: part -> number of questions.
        extra: letters in the order in which they get one more where a size is not divisible by four.

    Returns:
        Part -> its candidates, or None when the groups do not suffice.
    """
    parts = {name: _Part(size, quotas(size, extra)) for name, size in sizes.items() if size}
    left: list[Group] = []
    for group in groups:
        needs = {name: part.need(group) for name, part in parts.items()}
        best = max(needs, key=lambda name: needs[name], default=None)
        if best is not None and needs[best] > 0:
            parts[best].add(group)
        else:
            left.append(group)
    left.reverse()
    for part in parts.values():
        part.fill_from_spare()
        while part.missing() and left:
            part.add(left.pop())
            part.fill_from_spare()
        if part.missing():
            return None
    return {name: parts[name].taken if name in parts else [] for name in sizes}
