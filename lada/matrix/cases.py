"""Case study (paper, Fig. 6): test questions that one arm answered rightly and another wrongly.

Choice: of the first seed, in each scenario, dataset and setting, per party, the first question by id that the
first contrast's arm won, and the first that it lost. Nobody picks: a method's own failures stand beside its
successes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lada.answers import read_letter
from lada.layers import read_run
from lada.matrix.definition import Matrix
from lada.matrix.local import Run, last_predictions
from lada.records import LETTERS, Item, Prediction, read_jsonl
from lada.rundir import RunDir, write_atomic

Answers = Mapping[str, Mapping[str, Prediction]]
"""Arm -> question id -> what it answered."""


def find_cases(matrix: Matrix, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Cases as JSON values, by place and party; none where runs kept no texts.

    Each holds the place, the question with options and right letter, which contrast it was chosen by, and of
    every finished arm the run id, text, letter, whether it is right, and the rule that gave the letter.
    """
    if not matrix.contrasts or matrix.grid:
        return []
    places = dict.fromkeys((run.cell.scenario, run.cell.dataset, run.cell.shots) for run in runs)
    found = []
    for scenario, dataset, shots in places:
        place = (scenario, dataset, shots, matrix.seeds[0])
        here = {
            run.cell.arm: run
            for run in runs
            if (run.cell.scenario, run.cell.dataset, run.cell.shots, run.cell.seed) == place and run.finished
        }
        if all(arm in here for arm in matrix.contrasts[0]):
            found += list(_of_place(matrix.contrasts[0], here))
    return found


def write_cases(cases: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line; no file where there are no cases."""
    if cases:
        write_atomic(path, "".join(f"{json.dumps(case, ensure_ascii=False)}\n" for case in cases))
    else:
        path.unlink(missing_ok=True)


def _of_place(contrast: tuple[str, str], here: Mapping[str, Run]) -> Iterator[dict[str, Any]]:
    first, second = contrast
    run = here[first]
    for party in read_run(run.folder).parties:
        answers = {
            arm: {one.id: one for one in last_predictions(other.folder, party.name)}
            for arm, other in here.items()
        }
        items = {one.id: one for one in read_jsonl(Item, RunDir(run.folder).data(party.name, "test"))}
        for better, worse in ((first, second), (second, first)):
            name = _first_that_differs(answers, better, worse)
            if name is not None:
                yield {
                    "scenario": run.cell.scenario,
                    "dataset": run.cell.dataset,
                    "shots": run.cell.shots,
                    "seed": run.cell.seed,
                    "party": party.name,
                    "right": better,
                    "wrong": worse,
                    **_question(items[name]),
                    "answers": [_answer(arm, here[arm], answers[arm][name], items[name]) for arm in here],
                }


def _first_that_differs(answers: Answers, better: str, worse: str) -> str | None:
    return min(
        (
            name
            for name, one in answers[better].items()
            if one.correct and one.text and not answers[worse][name].correct and answers[worse][name].text
        ),
        default=None,
    )


def _question(item: Item) -> dict[str, Any]:
    options = dict(zip(LETTERS, item.options, strict=True))
    return {"id": item.id, "question": item.question, "options": options, "gold": item.answer}


def _answer(arm: str, run: Run, said: Prediction, item: Item) -> dict[str, Any]:
    return {
        "arm": arm,
        "run_id": run.folder.name,
        "text": said.text,
        "letter": said.letter,
        "correct": said.correct,
        "why": read_letter(said.text, item.options)[1],
    }
