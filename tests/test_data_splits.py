"""The splitter: balance, disjointness, determinism, shrinking, and what must not leave with an item."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lada.data import Federation, Request, aqua_rat, cot_collection, mathinstruct
from lada.data.cutting import cut_to_four, move_answer
from lada.data.grouping import components, group_keys, stem_key, template_key
from lada.data.parsing import LABELS, Dropped, ParsedRow
from lada.data.splits import split
from lada.errors import DataError
from lada.records import Item

SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = ["apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "house"]
WORDS += ["ivory", "jelly", "kite", "lemon", "mango", "night", "olive", "piano"]


def make_row(
    index: int, *, gold: int = 0, num_options: int = 5, group: str = "", rationale: str = ""
) -> ParsedRow:
    stem = " ".join(WORDS[(index // 16**k) % 16] for k in range(4))
    options = tuple(f"{WORDS[(index + k) % 16]} pie {k}" for k in range(num_options))
    text = rationale or f"Everyone who has looked at the {stem} before knows that it is an {options[gold]}."
    return ParsedRow(
        index, "accepted", None, f"What is the {stem}?", options, LABELS[gold], text, group=group
    )


def make_rows(count: int, *, seed: int = 0, golds: str = "ABCDE", per_group: int = 1) -> list[ParsedRow]:
    dice = random.Random(seed)
    return [
        make_row(i, gold=LABELS.index(dice.choice(golds)), group=f"g{i // per_group}") for i in range(count)
    ]


def request(train: int, test: int, public: int, *, clients: int = 2, seed: int = 0) -> Request:
    names = {f"client-{i + 1}": "model" for i in range(clients)}
    return Request("made-up", "server", names, train, test, public, seed)


def parts(federation: Federation) -> dict[str, list[Item]]:
    named = {f"{client}/train": items for client, items in federation.train.items()}
    named |= {f"{client}/test": items for client, items in federation.test.items()}
    return named | {"public": federation.public}


def check(federation: Federation, rows: list[ParsedRow]) -> None:
    """What holds for every federation: sizes, balance, disjointness, right answers, no rationale in train."""
    gold = {
        row.question: (row.options or ())[LABELS.index(row.answer or "A")] for row in rows if row.question
    }
    groups: dict[str, str] = {federation.demo.group: "demo"}
    for name, items in parts(federation).items():
        counts = Counter(item.answer for item in items)
        assert len(items) == federation.notes["given"][name]
        assert max(counts.values()) - min(counts[letter] for letter in "ABCD") <= (len(items) % 4 > 0)
        for item in items:
            assert groups.setdefault(item.group, name) == name
            assert item.options["ABCD".index(item.answer)] == gold[item.question]
            assert name.endswith("/train") is False or item.rationale is None
    everything = [item for items in parts(federation).values() for item in items] + [federation.demo]
    assert len({item.id for item in everything}) == len(everything)
    assert federation.demo.rationale is not None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    golds=st.sampled_from(["ABCDE", "A", "ABCD", "E", "AAAAAB"]),
    per_group=st.integers(1, 4),
    clients=st.integers(1, 3),
    sizes=st.tuples(st.integers(8, 18), st.integers(8, 18), st.integers(8, 18)),
    count=st.integers(150, 260),
)
def test_parts_are_balanced_disjoint_and_the_same_for_the_same_seed(
    seed: int, golds: str, per_group: int, clients: int, sizes: tuple[int, int, int], count: int
) -> None:
    rows = make_rows(count, seed=seed, golds=golds, per_group=per_group)
    # With E alone every rationale goes with its letter, so one row must be left for the example.
    rows.append(make_row(5000, gold=1))
    asked = request(*sizes, clients=clients, seed=seed)
    federation = split(rows, asked, {})
    check(federation, rows)
    assert federation == split(rows, asked, {})


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows = make_rows(120, per_group=2)
    backwards = list(reversed(rows))
    assert split(rows, request(8, 8, 16), {}) == split(backwards, request(8, 8, 16), {})


def test_another_seed_gives_other_parts_and_the_same_example() -> None:
    rows = make_rows(300)
    first, second = (split(rows, request(16, 16, 16, seed=seed), {}) for seed in (1, 2))
    assert [item.id for item in first.public] != [item.id for item in second.public]
    assert first.demo == second.demo


def test_all_letters_the_same_are_balanced_by_permuting() -> None:
    rows = make_rows(100, golds="A")
    federation = split(rows, request(8, 8, 12), {})
    check(federation, rows)
    assert federation.notes["letters"]["public"] == {"A": 3, "B": 3, "C": 3, "D": 3}
    assert federation.notes["relabelled"] >= (8 * 4 + 12) * 3 // 4


def test_a_size_not_divisible_by_four_differs_by_one_letter_at_most() -> None:
    federation = split(make_rows(100), request(9, 10, 11), {})
    assert sorted(federation.notes["letters"]["client-1/train"].values()) == [2, 2, 2, 3]
    assert sorted(federation.notes["letters"]["client-1/test"].values()) == [2, 2, 3, 3]
    assert sorted(federation.notes["letters"]["public"].values()) == [2, 3, 3, 3]


def test_too_few_rows_shrink_every_part_in_proportion_and_say_so() -> None:
    rows = make_rows(200)
    federation = split(rows, request(100, 50, 100), {})
    check(federation, rows)
    given, asked = federation.notes["given"], federation.notes["asked"]
    assert asked == {
        "client-1/train": 100,
        "client-2/train": 100,
        "client-1/test": 50,
        "client-2/test": 50,
        "public": 100,
    }
    assert given["client-1/train"] == given["client-2/train"] == given["public"]
    assert 0.4 <= given["client-1/test"] / given["public"] <= 0.6
    assert 150 <= sum(given.values()) <= 199
    (warning,) = federation.notes["warnings"]
    assert f"{sum(given.values())} of 400" in warning


def test_enough_rows_are_not_shrunk_and_warn_of_nothing() -> None:
    notes = split(make_rows(200), request(24, 16, 24), {}).notes
    assert notes["given"] == notes["asked"]
    assert notes["warnings"] == []


def test_below_the_minimum_is_an_error_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"30 usable questions in 30 groups .*asked were .*'public': 20"):
        split(make_rows(31), request(20, 20, 20), {})


def test_one_template_for_all_rows_is_an_error() -> None:
    rows = [*make_rows(400, per_group=400), make_row(5000)]
    with pytest.raises(DataError, match="1 groups"):
        split(rows, request(8, 8, 8), {})


def test_no_rationale_anywhere_is_an_error() -> None:
    rows = [ParsedRow(**{**vars(row), "rationale": None}) for row in make_rows(100)]
    with pytest.raises(DataError, match="one-shot example"):
        split(rows, request(8, 8, 8), {})


def test_notes_count_every_row_by_reason() -> None:
    rows = make_rows(100)
    rows += [ParsedRow(900, "dropped", "no-answer"), ParsedRow(901, "dropped", "no-answer")]
    rows += [make_row(902, num_options=3), make_row(903, num_options=2)]
    notes = split(rows, request(8, 8, 8), {"format": "x"}).notes
    assert (notes["rows"], notes["accepted"], notes["usable"]) == (104, 102, 100)
    assert notes["dropped"] == {"no-answer": 2, "fewer-than-four-options": 2}


def test_ids_of_the_file_are_kept_and_odd_ones_replaced() -> None:
    rows = make_rows(99)
    rows[3] = ParsedRow(**{**vars(rows[3]), "id": "own-3"})
    rows[4] = ParsedRow(**{**vars(rows[4]), "id": "not / legal", "row": "key with blanks"})
    federation = split(rows, request(8, 8, 56), {"format": "fmt"})
    ids = {item.question: item.id for items in parts(federation).values() for item in items}
    ids[federation.demo.question] = federation.demo.id
    for row in rows:
        if row.question in ids and row.row not in (3, "key with blanks"):
            assert ids[row.question] == f"fmt-{row.row:06d}"
    assert ids.get(rows[3].question or "", "own-3") == "own-3"
    assert ids.get(rows[4].question or "", "fmt-x").startswith("fmt-x")


def test_answers_and_rationales_stay_out_of_public_questions_and_training_items() -> None:
    rows = [
        make_row(i, gold=i % 4, rationale=f"CANARY{i} is why it is so, as all of us know well.")
        for i in range(120)
    ]
    federation = split(rows, request(16, 16, 16), {})
    shared = "".join(item.public().model_dump_json() for item in federation.public)
    trained = "".join(item.model_dump_json() for items in federation.train.values() for item in items)
    assert "CANARY" not in shared
    assert "CANARY" not in trained
    assert {key for item in federation.public for key in item.public().model_dump()} == {
        "id",
        "question",
        "options",
    }
    assert any("CANARY" in (item.rationale or "") for item in federation.test["client-1"])


# --- cutting -----------------------------------------------------------------------------------------------

FIVE = ("ant", "bee", "cat", "dog", "eel")


@pytest.mark.parametrize("answer", "ABCD")
def test_five_options_with_gold_a_to_d_lose_the_last_and_no_letter_moves(answer: str) -> None:
    cut = cut_to_four("Which?", FIVE, answer, "So option B is out.", seed=1)
    assert (cut.options, cut.letter, cut.rationale) == (FIVE[:4], answer, "So option B is out.")
    assert not cut.relabelled


def test_gold_e_drops_each_distractor_for_some_seed_and_keeps_the_order() -> None:
    cuts = [cut_to_four("Which?", FIVE, "E", "An eel swims.", seed=seed) for seed in range(60)]
    assert {cut.options for cut in cuts} == {tuple(o for o in FIVE if o != gone) for gone in FIVE[:4]}
    assert {(cut.letter, cut.options[3], cut.rationale) for cut in cuts} == {("D", "eel", "An eel swims.")}


@pytest.mark.parametrize(
    "text", ["Options A and B are small.", "Only (E) swims.", "Answer choice c fits.", "E.", "for b : 7 + 5"]
)
def test_a_rationale_that_names_letters_goes_when_letters_move(text: str) -> None:
    assert cut_to_four("Which?", FIVE, "E", text, seed=0).rationale is None
    assert move_answer(cut_to_four("Which?", FIVE, "A", text, seed=0), "C").rationale is None


def test_moving_the_answer_swaps_two_options() -> None:
    moved = move_answer(cut_to_four("Which?", FIVE, "A", "An ant.", seed=0), "C")
    assert (moved.options, moved.letter, moved.rationale) == (("cat", "bee", "ant", "dog"), "C", "An ant.")
    assert moved.relabelled


@pytest.mark.parametrize(
    "last", ["None of these", "none", "All of the above", "Neither of them", "not enough information"]
)
def test_collective_options_are_cut_but_never_moved(last: str) -> None:
    assert not cut_to_four("Which?", (*FIVE[:3], last), "A", None, seed=0).movable
    assert cut_to_four("Which?", (*FIVE[:4], last), "A", None, seed=0).movable  # it went with E
    cut = cut_to_four("Which?", (*FIVE[:4], last), "E", None, seed=0)
    assert (cut.options[3], cut.movable) == (last, False)


@pytest.mark.parametrize("odd", ["A and B only", "Both A and C", "B"])
def test_options_that_refer_to_letters_stay_whole_or_go(odd: str) -> None:
    kept = cut_to_four("Which?", (*FIVE[:3], odd), "D", None, seed=0)
    assert (kept.options[3], kept.movable) == (odd, False)
    with pytest.raises(Dropped, match="options-refer-to-letters"):
        cut_to_four("Which?", (*FIVE[:4], odd), "A", None, seed=0)


def test_eight_options_are_cut_around_the_right_one() -> None:
    eight = (*FIVE, "fox", "gnu", "hen")
    cut = cut_to_four("Which?", eight, "F", None, seed=3)
    assert cut.options[cut.answer] == "fox"
    assert list(cut.options) == [option for option in eight if option in cut.options]


# --- grouping ----------------------------------------------------------------------------------------------


def test_numbers_are_masked_for_templates_and_count_for_copies() -> None:
    one, two = "A train of 360 m runs at 45.5 km/h?", "a train of 1,200 m runs at 50 km/h"
    assert template_key(one) == template_key(two)
    assert stem_key(one) != stem_key(two)


def test_groups_are_linked_over_several_steps_whatever_the_order() -> None:
    keys: list[tuple[str, ...]] = [("a", "b"), ("c", "d"), ("e",), ("b", "c")]
    names = components(keys)
    assert names[0] == names[1] == names[3] != names[2]
    assert components(reversed(keys)) == names[::-1]


def test_questions_on_one_passage_are_one_group() -> None:
    passage = " ".join(f"{WORDS[i % 16]}{'s' * (i // 16)}" for i in range(60))
    first = group_keys(f"Context: {passage}.\nWho came first?", ("x", "y", "z", "w"))
    second = group_keys(f"{passage}. What did they eat?", ("k", "l", "m", "n"))
    assert set(first) & set(second)


# --- the shared files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "name", "sizes"),
    [
        (aqua_rat, "mathqa.jsonl.gz", (600, 300, 600)),
        (aqua_rat, "aqua_rat.jsonl.gz", (200, 100, 200)),
        (mathinstruct, "mathinstruct_sample.json", (24, 16, 24)),
        (cot_collection, "cot_collection_sample.json", (24, 16, 24)),
        (cot_collection, "cot_collection_sample.json", (1000, 500, 1000)),
    ],
)
def test_shared_files_make_federations(loader: Any, name: str, sizes: tuple[int, int, int]) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"shared/data/{name} is not beside the checkout")
    names = {f"client-{i}": "model" for i in (1, 2, 3)}
    asked = Request("d", "server", names, *sizes, 7, SHARED / name)
    federation = loader.federation(asked)
    rows = list(loader.parse(SHARED / name))
    check(federation, rows)
    assert bool(federation.notes["warnings"]) == (sizes[0] == 1000)
    if rows[0].group:  # the file's own groups are never cut apart
        own = {row.id: row.group for row in rows}
        home: dict[str, str] = {}
        for part, items in parts(federation).items():
            assert all(home.setdefault(own[item.id], part) == part for item in items)


def test_the_two_aqua_files_together_hold_the_papers_5500(tmp_path: Path) -> None:
    data = b""
    for name in ("aqua_rat.jsonl.gz", "mathqa.jsonl.gz"):
        if not (SHARED / name).is_file():
            pytest.skip(f"shared/data/{name} is not beside the checkout")
        data += gzip.decompress((SHARED / name).read_bytes())
    both = tmp_path / "both.jsonl"
    both.write_bytes(data)
    asked = Request("d", "s", {f"client-{i}": "m" for i in (1, 2, 3)}, 1000, 500, 1000, 0, both)
    federation = aqua_rat.federation(asked)
    assert federation.notes["given"] == federation.notes["asked"]
    assert all(set(counts.values()) in ({250}, {125}) for counts in federation.notes["letters"].values())
