"""A table of the paper from a matrix's results: every cell filled, ranked, tested and annotated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean

from lada.config import SERVER
from lada.report import notes, paper
from lada.report.arrange import HEADS, LADA, Arrangement, Spec, parts_of, printed_as
from lada.report.compare import Cell, Improvement, Score, improvement, mean_over, ranks, scores
from lada.report.layout import IMPROVEMENT, MEAN, Entry, Key, Mark, Table
from lada.report.made import Made
from lada.report.results import Results, best_round, final
from lada.report.statistics import holm

RATES = {"unparsed_rate": "answers without a letter", "truncated_rate": "answers cut off at the token limit"}


@dataclass(frozen=True)
class Builder:
    """Builds one table of one matrix."""

    results: Results
    spec: Spec

    @cached_property
    def arrangement(self) -> Arrangement:
        """Which cells there are, and where."""
        return Arrangement(self.results.matrix, self.spec)

    @cached_property
    def accuracies(self) -> dict[Cell, Score]:
        """After the last round, means over parties among them."""
        return self._with_means(scores(final(self.results.rows)))

    @cached_property
    def best_rounds(self) -> dict[Cell, Score]:
        """Of each seed's best round, means over parties among them."""
        return self._with_means(scores(best_round(self.results.rows)))

    @cached_property
    def rates(self) -> dict[str, dict[Cell, Score]]:
        """`RATES` after the last round, means over parties among them."""
        return {metric: self._with_means(scores(final(self.results.rows, metric))) for metric in RATES}

    @cached_property
    def unranked(self) -> frozenset[Cell]:
        """Servers that were measured before round 1 alone: their method leaves them as they came."""
        if self.spec.ranks_untouched:
            return frozenset()
        last = final(self.results.rows)
        servers = last[last["party"] == SERVER]
        return frozenset(scores(servers[servers["round"] == 0]))

    @cached_property
    def made(self) -> Made:
        """What the runs were made with."""
        return Made(self.results)

    @cached_property
    def improvements(self) -> dict[Cell, Improvement]:
        """By the cell in which they stand."""
        baselines, found = self.arrangement.baselines, {}
        ranked = {cell: score for cell, score in self.accuracies.items() if cell not in self.unranked}
        for cell in (one for one in self.arrangement.cells if one.arm == IMPROVEMENT):
            gain = improvement(self.results, ranked, cell._replace(arm=LADA), baselines)
            if gain is not None:
                found[cell] = gain
        return found

    @cached_property
    def corrected(self) -> dict[Cell, float]:
        """p-values after Holm's correction over all tests of the table."""
        tested = {
            cell: gain.comparison.p for cell, gain in self.improvements.items() if gain.comparison is not None
        }
        return dict(zip(tested, holm(list(tested.values())), strict=True))

    def table(self) -> Table:
        """The table, with the rates as its blocks."""
        marks, notes_of, entries = self._marks(), {}, {}
        for cell in self.arrangement.cells:
            place = self.arrangement.place(cell)
            entries[place] = replace(self._entry(cell), mark=marks.get(cell))
            weights = partial(self.made.weights, cell)
            printed = paper.footnotes(self.spec.name, printed_as(cell), weights)
            notes_of[place] = [*printed, *self._said(cell)]
        in_order = {place: entries[place] for place in self._places() if place in entries}
        marked, footnotes, general = notes.attach(in_order, notes_of)
        blocks = {what: self.rate_table(metric) for metric, what in RATES.items()}
        said = [said_of(block, what) for what, block in blocks.items() if is_plain(block)]
        remarks = notes.remarks(self.results, marked, len(self.corrected))
        bare = self._bare(
            self.spec.name, f"{self.spec.subject}, accuracy in per cent", self.arrangement.cells
        )
        return replace(
            bare,
            entries=marked,
            footnotes=footnotes,
            remarks=(*remarks, *general, *self.made.remarks(), *said, *paper.remarks(self.spec.name)),
            tests=len(self.corrected),
            missing=notes.missing_runs(self.results, self.arrangement, self.accuracies),
            blocks=tuple(block for block in blocks.values() if not is_plain(block)),
        )

    def _places(self) -> list[tuple[Key, Key]]:
        """Row by row, so that footnotes are lettered as they are read."""
        spec, cells = self.spec, self.arrangement.cells
        rows, columns = self.arrangement.keys(spec.rows, cells), self.arrangement.keys(spec.columns, cells)
        return [(row, column) for row in rows for column in columns]

    def _bare(self, name: str, what: str, cells: tuple[Cell, ...]) -> Table:
        """A table with headers alone."""
        datasets = " and ".join(self.results.matrix.datasets)
        where = ", ".join([datasets, f"{self.results.tier} tier", *self.results.sizes])
        return Table(
            name=name,
            title=f"Table {self.spec.number}: {what} ({where})",
            row_heads=tuple(HEADS[axis] for axis in self.spec.rows),
            rows=self.arrangement.keys(self.spec.rows, cells),
            columns=self.arrangement.keys(self.spec.columns, cells),
            entries={},
            labels=self.arrangement.labels,
        )

    def _entry(self, cell: Cell) -> Entry:
        empty = Entry(
            paper=paper.printed_number(self.spec.name, printed_as(cell)),
            cell=named(cell),
            signed=cell.arm == IMPROVEMENT,
        )
        if cell in self.improvements:
            gain, p = self.improvements[cell], self.corrected.get(cell)
            entry = filled(empty, gain.score)
            tested = replace(entry, p=p, interval=gain.interval, comparison=gain.comparison)
            return replace(tested, baseline=gain.baseline)
        if cell not in self.accuracies:
            return empty
        score, best = self.accuracies[cell], self.best_rounds[cell].values
        unparsed, truncated = (self.rates[metric].get(cell) for metric in RATES)
        return replace(
            filled(empty, score),
            best_round=fmean(best[seed] for seed in score.values),
            unparsed=None if unparsed is None else unparsed.mean,
            truncated=None if truncated is None else truncated.mean,
        )

    def _said(self, cell: Cell) -> list[str]:
        """Of servers that nobody trains, of seeds that are missing, and of tests that cannot be made."""
        gain = self.improvements.get(cell)
        score = self.accuracies.get(cell) if gain is None else gain.score
        if score is None:
            rivals = {cell._replace(arm=arm) for arm in self.arrangement.baselines}
            return [notes.NO_RIVAL] if cell.arm == IMPROVEMENT and rivals & self.unranked else []
        seeds = notes.seeds_note(list(score.values), self.results.matrix.seeds)
        untested = self.corrected and gain is not None and gain.comparison is None
        return [
            *([notes.UNTOUCHED] if cell in self.unranked else []),
            *([seeds] if seeds else []),
            *(["No test: answers of some seed were not compared."] if untested else []),
        ]

    def _marks(self) -> dict[Cell, Mark]:
        groups: dict[Cell, dict[Cell, Score]] = {}
        for cell, score in self.accuracies.items():
            if self.arrangement.competes(cell.arm) and cell not in self.unranked:
                groups.setdefault(self.spec.rivals(cell), {})[cell] = score
        return {cell: mark for rivals in groups.values() for cell, mark in ranks(rivals).items()}

    def _with_means(self, found: dict[Cell, Score]) -> dict[Cell, Score]:
        means = {}
        for cell in (one for one in self.arrangement.cells if one.party == MEAN):
            parties = self.arrangement.parties(cell.scenario)
            score = mean_over([found.get(cell._replace(party=party)) for party in parties])
            if score is not None:
                means[cell] = score
        return {**found, **means}

    def rate_table(self, metric: str) -> Table:
        """A block: one of `RATES` in all cells that runs measure."""
        what = RATES[metric]
        measured = self.rates[metric]
        bare = self._bare(block_name(self.spec.name, metric), what, self.arrangement.measured)
        entries = {
            self.arrangement.place(cell): filled(Entry(cell=named(cell)), measured[cell])
            if cell in measured
            else Entry(cell=named(cell))
            for cell in self.arrangement.measured
        }
        return replace(bare, entries=entries, title=f"{bare.title}, per cent")


def block_name(table: str, metric: str) -> str:
    """Of the table of a rate: ``table2-unparsed``."""
    return f"{table}-{metric.partition('_')[0]}"


def is_plain(table: Table) -> bool:
    """Whether a block says the same everywhere, so that a sentence does."""
    return not any(entry.mean for entry in table.entries.values())


def said_of(block: Table, what: str) -> str:
    """The sentence for a block that `is_plain`."""
    if any(entry.mean is not None for entry in block.entries.values()):
        return f"{what.capitalize()}: none in any cell."
    return f"{what.capitalize()}: not collected."


def named(cell: Cell) -> dict[str, str]:
    """The cell's axes as the files name them."""
    return {**parts_of(cell), "scenario": cell.scenario, "shots": str(cell.shots)}


def filled(entry: Entry, score: Score) -> Entry:
    """The entry with what was measured."""
    seeds, values = tuple(score.values), tuple(score.values.values())
    return replace(entry, mean=score.mean, std=score.std, seeds=seeds, values=values)
