"""Case study (Fig. 6): the same test question answered by two arms, with the letter that was read and why.

Which questions these are is decided where runs are collected (`lada.matrix.cases`), not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from lada.config import Options
from lada.errors import DataError


class Answer(Options):
    """What one arm answered.

    Attributes:
        letter: that was read from the text; None: none could be.
        why: the rule that gave the letter, or why there is none.
    """

    arm: str
    run_id: str
    text: str
    letter: str | None
    correct: bool
    why: str

    @property
    def verdict(self) -> str:
        """Letter and whether it is right, in words."""
        if self.letter is None:
            return "no letter, counted as wrong"
        return f"{self.letter}, {'right' if self.correct else 'wrong'}"


class Case(Options):
    """One test question of one party.

    Attributes:
        right, wrong: the arms that it was chosen by: one answered rightly, the other wrongly.
        options: letter -> text. gold: the right letter.
        answers: of every finished arm.
    """

    scenario: str
    dataset: str
    shots: int
    seed: int
    party: str
    right: str
    wrong: str
    id: str
    question: str
    options: Mapping[str, str]
    gold: str
    answers: tuple[Answer, ...]

    @property
    def place(self) -> str:
        """Where it was asked."""
        setting = "one-shot" if self.shots else "zero-shot"
        return f"{self.dataset}, scenario {self.scenario}, {setting}, {self.party}, seed {self.seed}"

    @property
    def compared(self) -> tuple[Answer, ...]:
        """The two answers that the case is about, the right one first."""
        found = {answer.arm: answer for answer in self.answers}
        return tuple(found[arm] for arm in (self.right, self.wrong) if arm in found)

    @property
    def others(self) -> tuple[Answer, ...]:
        """Those of the other arms."""
        return tuple(answer for answer in self.answers if answer.arm not in (self.right, self.wrong))


def read_cases(path: Path) -> list[Case]:
    """Cases of a ``<matrix>-cases.jsonl``; none where the file is not there.

    Raises:
        DataError: a line is no case.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Case.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise DataError(f"{path}, line {number}: {where}: {first['msg']}") from error
    return found


def to_markdown(cases: Sequence[Case], labels: Mapping[str, str], missing: Sequence[str] = ()) -> str:
    """A section per case: question, options, then both texts as they were written.

    Args:
        labels: arm -> what it is called; an arm without one is called by its name.
        missing: where there is no case, and why.
    """
    lines = [
        "# Case study",
        "",
        "Of each place and party whose runs kept the texts of their answers the first test question that one",
        "arm answered rightly and the other wrongly, both ways round. Generated; texts are shown as the",
        "models wrote them.",
        "",
    ]
    if missing:
        lines += ["Missing:", "", *(f"- {_inline(one)}" for one in missing), ""]
    for case in cases:
        lines += [f"## {case.place}: {case.id}", "", *_fenced(case.question), ""]
        for letter, option in case.options.items():
            lines += [f"- {letter}: {_inline(option)}{' (right)' if letter == case.gold else ''}"]
        for answer in case.compared:
            lines += ["", f"**{labels.get(answer.arm, answer.arm)}** ({answer.verdict}; {answer.why}), run"]
            lines += [f"`{answer.run_id}`:", "", *_fenced(answer.text)]
        if case.others:
            said = "; ".join(f"{labels.get(one.arm, one.arm)}: {one.verdict}" for one in case.others)
            lines += ["", f"Others: {said}."]
        lines.append("")
    return "\n".join(lines)


def _fenced(text: str) -> list[str]:
    """A code block whose fence no text can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def _inline(text: str) -> str:
    """One line in which no character means anything to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
