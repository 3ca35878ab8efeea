"""From parsed rows to the data of a run: cut to four options, grouped, letter-balanced, seeded.

Choice (paper, Section VI, is silent on all of it): parts are disjoint by template group, not by row, since
AQuA repeats its templates; clients are alike (IID by group); each part is letter-balanced, not only the pool.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lada.data import Federation, Request
from lada.data.balance import Candidate, Group, fill
from lada.data.cutting import cut_to_four, names_letters
from lada.data.grouping import components, group_keys
from lada.data.parsing import Dropped, ParsedRow, normalise_option
from lada.errors import DataError
from lada.records import LETTERS, Item

MIN_SIZE = 8  # items per part below which a run says nothing (or what was asked, where that is less)
POOL_ROWS = 60_000  # rows held in memory; of a larger file a seeded sample of whole templates
_SHRINK = 0.95
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass
class _Pool:
    """What one pass over the rows leaves: candidates, the best one-shot example, and counts."""

    candidates: list[Candidate]
    demo: Candidate | None
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def split(rows: Iterable[ParsedRow], request: Request, notes: dict[str, Any]) -> Federation:
    """Make the federation of a run out of a file's rows.

    Too small a file shrinks all parts in proportion (to multiples of four); ``notes["warnings"]`` says so.

    Args:
        rows: all rows of a file, dropped ones too; read once, in any order.
        request: sizes, clients and the seed, which alone decides the split.
        notes: gets the counts: rows read, accepted and dropped by reason, sizes asked and given, letters
            by part. Its ``format`` is the prefix of ids.

    Raises:
        DataError: when a part would hold fewer than `MIN_SIZE` items, or no row can be the one-shot example.
    """
    pool = _collect(rows, request.seed, str(notes.get("format", "row")))
    where = str(request.file) if request.file is not None else request.dataset
    _note_counts(notes, pool)
    if pool.demo is None:
        raise DataError(f"{where}: no accepted row with a rationale can be the one-shot example")
    everything = [pool.demo, *pool.candidates]
    names = components([candidate.keys for candidate in everything])
    groups: dict[str, list[Candidate]] = {}
    for candidate, name in zip(pool.candidates, names[1:], strict=True):
        if name != names[0]:
            groups.setdefault(name, []).append(candidate)
    asked = _asked_sizes(request)
    given, parts = _fill_shrinking(groups, asked, request.seed, where)
    group_of = {candidate.id: name for candidate, name in zip(everything, names, strict=True)}
    _note_sizes(notes, asked, given, parts, num_groups=len(groups))
    return _federation(request, parts, pool.demo, group_of, notes)


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose: sha256 of the run's seed and the purpose (architecture, section 8)."""
    text = "/".join(str(part) for part in (seed, "data", *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _collect(rows: Iterable[ParsedRow], seed: int, prefix: str) -> _Pool:
    heap: list[tuple[int, str, Candidate]] = []
    pool = _Pool([], None)
    best: tuple[int, int] | None = None
    ids: set[str] = set()
    for row in rows:
        pool.counts["read"] += 1
        try:
            candidate = _candidate(row, seed, prefix)
        except Dropped as drop:
            pool.dropped[drop.reason] += 1
            pool.counts["accepted"] += row.status == "accepted"
            continue
        pool.counts["accepted"] += 1
        if candidate.id in ids:
            pool.dropped["id-twice"] += 1
            continue
        ids.add(candidate.id)
        pool.counts["usable"] += 1
        rank = _demo_rank(candidate)
        if rank is not None and (best is None or rank < best):
            best, pool.demo = rank, candidate
        order = derived_seed(seed, "pool", candidate.keys[0])
        heapq.heappush(heap, (-order, candidate.id, candidate))
        if len(heap) > POOL_ROWS:
            heapq.heappop(heap)
    pool.candidates = sorted((entry[2] for entry in heap), key=lambda c: derived_seed(seed, "row", c.id))
    return pool


def _candidate(row: ParsedRow, seed: int, prefix: str) -> Candidate:
    """The row cut to four options; raises `Dropped` with the row's own reason or the splitter's."""
    if row.status == "dropped":
        raise Dropped(row.reason or "dropped")
    assert row.question is not None
    assert row.options is not None
    assert row.answer is not None
    name = _item_id(row, prefix)
    cut_seed = derived_seed(seed, "cut", name)
    cut = cut_to_four(row.question, row.options, row.answer, row.rationale, seed=cut_seed)
    return Candidate(name, row.question, cut, group_keys(row.question, row.options, row.group))


def _item_id(row: ParsedRow, prefix: str) -> str:
    """The file's own id where it has a legal one, else format and row."""
    if _ID.fullmatch(row.id):
        return row.id
    if isinstance(row.row, int):
        return f"{prefix}-{row.row:06d}"
    name = f"{prefix}-{row.row}"
    return name if _ID.fullmatch(name) else f"{prefix}-x{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _demo_rank(candidate: Candidate) -> tuple[int, int] | None:
    """Order of fitness as the one-shot example, the same for all seeds; None: unfit.

    Choice: a whole rationale of 60 to 600 characters that names no letter and holds the right option's text,
    a stem of up to 400 characters; among equals a hash decides.
    """
    cut = candidate.cut
    if cut.rationale is None or cut.relabelled:
        return None
    faults = (
        (not 60 <= len(cut.rationale) <= 600)
        + (len(candidate.question) > 400)
        + (re.search(r"[\w.!%)]$", cut.rationale) is None)
        + 2 * names_letters(cut.rationale)
        + (normalise_option(cut.options[cut.answer]) not in normalise_option(cut.rationale))
    )
    return faults, derived_seed(0, "demo", candidate.id)


def _asked_sizes(request: Request) -> dict[str, int]:
    sizes = {f"{client}/train": request.num_train for client in request.clients}
    sizes |= {f"{client}/test": request.num_test for client in request.clients}
    return sizes | {"public": request.num_public}


def _fill_shrinking(
    groups: Mapping[str, list[Candidate]], asked: Mapping[str, int], seed: int, where: str
) -> tuple[dict[str, int], dict[str, list[Candidate]]]:
    """The largest sizes in proportion to ``asked`` that the groups can fill, and the parts."""
    shuffled = [groups[name] for name in sorted(groups, key=lambda name: derived_seed(seed, "group", name))]
    largest_first: list[Group] = sorted(shuffled, key=len, reverse=True)
    extra = sorted(LETTERS, key=lambda letter: derived_seed(seed, "extra", letter))
    available, wanted = sum(map(len, shuffled)), sum(asked.values())
    floor = {name: min(size, MIN_SIZE) for name, size in asked.items()}
    scale = 1.0 if available >= wanted else available / wanted
    while True:
        given = dict(asked)
        if scale < 1:
            given = {name: max(int(size * scale) // 4 * 4, floor[name]) for name, size in asked.items()}
        for order in (shuffled, largest_first):
            parts = fill(order, given, extra)
            if parts is not None:
                return given, parts
        if given == floor:
            raise DataError(
                f"{where}: {available} usable questions in {len(groups)} groups cannot fill the smallest "
                f"parts {floor} with equally many answers A to D; asked were {dict(asked)}"
            )
        scale *= _SHRINK


def _note_counts(notes: dict[str, Any], pool: _Pool) -> None:
    notes["rows"] = pool.counts["read"]
    notes["accepted"] = pool.counts["accepted"]
    notes["dropped"] = dict(sorted(pool.dropped.items()))
    notes["usable"] = pool.counts["usable"]
    notes["pooled"] = len(pool.candidates)


def _note_sizes(
    notes: dict[str, Any],
    asked: Mapping[str, int],
    given: Mapping[str, int],
    parts: Mapping[str, list[Candidate]],
    *,
    num_groups: int,
) -> None:
    notes["groups"] = num_groups
    notes["asked"], notes["given"] = dict(asked), dict(given)
    notes["letters"] = {
        name: {letter: sum(c.cut.letter == letter for c in part) for letter in LETTERS}
        for name, part in parts.items()
    }
    notes["relabelled"] = sum(c.cut.relabelled for part in parts.values() for c in part)
    notes["clients"] = "iid-by-group"
    warnings = notes.setdefault("warnings", [])
    if dict(given) != dict(asked):
        total = f"{sum(given.values())} of {sum(asked.values())} items"
        warnings.append(f"the file is too small for the sizes asked: parts shrunk to {total}")


def _federation(
    request: Request,
    parts: Mapping[str, list[Candidate]],
    demo: Candidate,
    group_of: Mapping[str, str],
    notes: dict[str, Any],
) -> Federation:
    def items(part: str) -> list[Item]:
        shuffled = list(parts[part])
        random.Random(derived_seed(request.seed, "order", part)).shuffle(shuffled)
        return [_item(candidate, group_of[candidate.id]) for candidate in shuffled]

    return Federation(
        train={c: [item.without_rationale() for item in items(f"{c}/train")] for c in request.clients},
        test={c: items(f"{c}/test") for c in request.clients},
        public=items("public"),
        demo=_item(demo, group_of[demo.id]),
        notes=notes,
    )


def _item(candidate: Candidate, group: str) -> Item:
    cut = candidate.cut
    return Item(
        id=candidate.id,
        question=candidate.question,
        options=cut.options,
        answer=cut.letter,
        rationale=cut.rationale,
        group=group,
    )
