"""What is said below a table: footnotes of cells, remarks, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lada.report.arrange import SETTINGS, Arrangement
from lada.report.compare import Cell, Score
from lada.report.layout import Entry, Key
from lada.report.results import Results

Place = tuple[Key, Key]
GAIN = (
    "Improvement: LaDa minus the best other method, which is named (the first of equals), points, mean "
    "over seeds."
)
UNTOUCHED = "The model as it came, which this method does not train: not ranked, and no baseline."
NO_RIVAL = "No gain: the other methods do not train the server."
UNTESTED = "No tests: answers to the same questions were not compared."
STAND_INS = (
    "The lab tier's models are tiny stand-ins for those of the paper, whose figures stand beside for "
    "orientation, not as a target."
)

RANDOM = "A rehearsal: the models' weights are random, and no figure means anything."


def seeds_note(measured: Sequence[int], expected: Sequence[int]) -> str:
    """What a reader must know of a mean's seeds; empty: all are there and there are several."""
    absent = [seed for seed in expected if seed not in measured]
    if absent:
        note = f"{len(measured)} of {len(expected)} seeds (without {_seeds(absent)})"
        return note + (", so no standard deviation." if len(measured) == 1 else ".")
    return "One seed, so no standard deviation." if len(measured) == 1 else ""


def attach(
    entries: Mapping[Place, Entry], said: Mapping[Place, Sequence[str]]
) -> tuple[dict[Place, Entry], tuple[str, ...], tuple[str, ...]]:
    """Number what is said of cells in the order of the entries.

    Returns:
        Entries with their notes; the footnotes; and what is said of every measured cell, which gets no mark.
    """
    measured = [place for place, entry in entries.items() if entry.mean is not None]
    general = [
        text
        for text in dict.fromkeys(text for place in measured for text in said.get(place, ()))
        if len(measured) > 1 and all(text in said.get(place, ()) for place in measured)
    ]
    texts: list[str] = []
    marked = {}
    for place, entry in entries.items():
        notes = [text for text in said.get(place, ()) if text and text not in general]
        texts += [text for text in dict.fromkeys(notes) if text not in texts]
        marked[place] = replace(entry, notes=tuple(sorted(texts.index(text) for text in notes)))
    return marked, tuple(texts), tuple(f"In all cells: {text}" for text in general)


def remarks(results: Results, entries: Mapping[Place, Entry], tests: int) -> list[str]:
    """What the signs in a table mean."""
    found = [
        "Accuracy after the last round, mean ± standard deviation over seeds; in brackets what the paper "
        "prints, and the measured value minus it. Bold: best; italics: second best; equals alike; a "
        "mean over fewer seeds than those beside it is not ranked, nor is one alone."
    ]
    if any(entry.signed and entry.mean is not None for entry in entries.values()):
        found.append(GAIN if tests else f"{GAIN} {UNTESTED}")
    versions = len(set(results.runs.get("code", ())))
    if versions > 1:
        found.append(f"The runs were made with {versions} versions of the code that decides numbers.")
    said = {"lab": [STAND_INS], "rehearsal": [RANDOM]}
    return [*found, *said.get(results.tier, [])]


def missing_runs(
    results: Results, arrangement: Arrangement, accuracies: Mapping[Cell, Score]
) -> tuple[str, ...]:
    """Seeds without a finite accuracy, said once for what they have in common."""
    absent = _absent(results, arrangement, accuracies)
    has_runs = {
        (row.arm, row.at, row.scenario, row.dataset, row.shots, row.seed)
        for row in results.runs.itertuples(index=False)
    }
    lines: dict[str, None] = {}
    for cell, seeds in absent.items():
        run = (cell.arm, cell.at, cell.scenario, cell.dataset, cell.shots)
        unfinished = [seed for seed in seeds if (*run, seed) not in has_runs]
        undefined = [seed for seed in seeds if seed not in unfinished]
        if unfinished:
            lines[
                f"{_common(results, cell, unfinished, has_runs)}: no finished run of {_seeds(unfinished)}"
            ] = None
        if undefined:
            lines[f"{_run_name(results, cell)}, {cell.party}: no accuracy in {_seeds(undefined)}"] = None
    return tuple(lines)


def _absent(
    results: Results, arrangement: Arrangement, accuracies: Mapping[Cell, Score]
) -> dict[Cell, list[int]]:
    found = {}
    for cell in arrangement.measured:
        there = accuracies[cell].values if cell in accuracies else {}
        seeds = [seed for seed in results.matrix.seeds if seed not in there]
        if seeds:
            found[cell] = seeds
    return found


def _common(results: Results, cell: Cell, seeds: Sequence[int], has_runs: Collection[tuple[Any, ...]]) -> str:
    """The place alone where none of its runs is finished, else with arm and point."""
    place = (cell.scenario, cell.dataset, cell.shots)
    is_empty = len(seeds) == len(results.matrix.seeds) and not any(run[2:5] == place for run in has_runs)
    return _place_name(results, cell) if is_empty else _run_name(results, cell)


def _run_name(results: Results, cell: Cell) -> str:
    return ", ".join([_place_name(results, cell), cell.arm, *([cell.at] if cell.at else [])])


def _place_name(results: Results, cell: Cell) -> str:
    parts = [f"scenario {cell.scenario}", SETTINGS[cell.shots]]
    return ", ".join([*([cell.dataset] if len(results.matrix.datasets) > 1 else []), *parts])


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
