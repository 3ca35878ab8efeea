"""The loaders on hand-made files, on the shared samples where they are present, and on damaged files."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from lada.data import Request, aqua_rat, cot_collection, load_federation, mathinstruct
from lada.data.cli import FORMATS, write_parsed
from lada.errors import ConfigError, DataError

HERE = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {
    "mathinstruct": "mathinstruct.json",
    "cot_collection": "cot_collection.json",
    "aqua_rat": "aqua_rat.jsonl",
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"shared/data/{name} is not beside the checkout")
    return SHARED / name


@pytest.mark.parametrize("name", FILES)
def test_hand_made_rows_come_out_as_expected(name: str) -> None:
    rows = list(FORMATS[name](HERE / FILES[name]))
    expected = read_lines(HERE / f"{name}.expected.jsonl")
    assert [row.row for row in rows] == [line["row"] for line in expected]
    for row, line in zip(rows, expected, strict=True):
        assert row.reason == line["reason"], line
        assert row.status == ("accepted" if line["reason"] is None else "dropped")
        assert (row.options and list(row.options)) == line["options"]
        assert row.answer == line["answer"]
        if "question" in line:
            assert row.question == line["question"]


@pytest.mark.parametrize("name", ["mathinstruct", "cot_collection"])
def test_every_row_of_the_shared_samples_comes_out_as_expected(name: str, tmp_path: Path) -> None:
    source = shared(f"{name}_sample.json")
    counts = write_parsed(source, name, tmp_path / "out.jsonl")
    got = read_lines(tmp_path / "out.jsonl")
    expected = read_lines(SHARED / f"{name}_sample.expected.jsonl")
    assert [line["row"] for line in got] == [line["row"] for line in expected]
    assert sum(counts.values()) == len(expected)
    for line, wanted in zip(got, expected, strict=True):
        if wanted["expect"] == "either":
            continue
        assert (line["status"] == "accepted") == (wanted["expect"] == "accept"), wanted
        assert (line["options"], line["answer"]) == (wanted["options"], wanted["answer"])


@pytest.mark.parametrize(("name", "rows"), [("aqua_rat", 2086), ("mathqa", 6698)])
def test_every_row_of_the_shared_aqua_files_is_accepted(name: str, rows: int) -> None:
    source = shared(f"{name}.jsonl.gz")
    got = list(aqua_rat.parse(source))
    with gzip.open(source, "rt", encoding="utf-8", newline="\n") as stream:
        raw = [json.loads(line) for line in stream]
    assert len(got) == len(raw) == rows
    assert [(r.question, list(r.options or ()), r.answer, r.id, r.group) for r in got] == [
        (r["question"], r["options"], r["answer"], r["id"], r["group"]) for r in raw
    ]


@pytest.mark.parametrize(
    "ending", ["The answer is B", "ANSWER:B", "Answer : b", "B", "So the answer is (B)."]
)
def test_the_answer_statement_is_no_part_of_the_rationale(ending: str, tmp_path: Path) -> None:
    output = f"Let's solve the multi-choice question step by step.\nTwo and two make four.\n{ending}"
    record = {
        "source": mathinstruct.SOURCE,
        "output": output,
        "instruction": "2+2?\nAnswer Choices: (A) 3 (B) 4",
    }
    (tmp_path / "f.json").write_text(json.dumps([record]))
    (row,) = mathinstruct.parse(tmp_path / "f.json")
    assert (row.answer, row.rationale, row.question) == ("B", "Two and two make four.", "2+2?")


@pytest.mark.parametrize(
    "ending",
    [
        "Neither option A nor option B",
        "The answer is not A",
        "Hence statement A is correct.",
        "The answer is A number",
        "Answer: A) 4",
        "The answer is A or B.",
        "the boat of B",
    ],
)
def test_what_only_looks_like_a_statement_is_dropped(ending: str, tmp_path: Path) -> None:
    record = {
        "source": mathinstruct.SOURCE,
        "output": ending,
        "instruction": "2+2?\nAnswer Choices: (A) 3 (B) 4",
    }
    (tmp_path / "f.json").write_text(json.dumps([record]))
    (row,) = mathinstruct.parse(tmp_path / "f.json")
    assert row.reason in {"no-answer", "two-letters"}


def test_a_stem_that_differs_in_an_operator_is_no_copy(tmp_path: Path) -> None:
    stems = ["If x + y = 3, x?", "If x - y = 3, x?", "if  X + Y = 3 , x"]
    lines = [{"question": s, "options": ["A)1", "B)2"], "correct": "A", "rationale": ""} for s in stems]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [row.reason for row in aqua_rat.parse(tmp_path / "f.jsonl")] == [None, None, "duplicate"]


def test_a_passage_of_several_hundred_words_passes_whole() -> None:
    rows = [row for row in cot_collection.parse(HERE / FILES["cot_collection"]) if row.question]
    (row,) = [row for row in rows if len((row.question or "").split()) > 300]
    assert row.question is not None
    assert row.question.endswith("writes a line.\nWho waits by the gate?")
    assert row.rationale == "The wolf came\nat night."


@pytest.mark.parametrize("name", FILES)
def test_gzip_and_a_byte_order_mark_change_nothing(name: str, tmp_path: Path) -> None:
    plain = (HERE / FILES[name]).read_bytes()
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain))
    assert list(FORMATS[name](packed)) == list(FORMATS[name](HERE / FILES[name]))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_off_file_is_an_error_and_leaves_no_output(name: str, packed: bool, tmp_path: Path) -> None:
    data = (HERE / FILES[name]).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(gzip.compress(data)[:-20] if packed else data[:-20])
    with pytest.raises(DataError, match=r"cut.*(cut off|cannot be read)"):
        write_parsed(cut, name, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mathinstruct", "{}", "top level of the JSON is an object; it should be an array"),
        ("cot_collection", "[]", "top level of the JSON is an array; it should be an object"),
        ("cot_collection", "7", "neither"),
        ("mathinstruct", "", "empty"),
        ("aqua_rat", "\n\n", "empty"),
        ("aqua_rat", "[{}]", "line 1: holds a list"),
        ("aqua_rat", '{"question": "a"}\n{"question', "line 2"),
        ("mathinstruct", "[] x", "not JSON"),
        ("mathinstruct", '[{"source": NaN}]', "not JSON"),
    ],
)
def test_a_file_of_another_kind_is_an_error_that_names_it(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list(FORMATS[name](tmp_path / "odd.json"))
    assert "odd.json" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        list(FORMATS[name](tmp_path / "absent.json"))
    request = Request(name, "s", {"client-1": "m"}, 8, 8, 8, 0, None)
    with pytest.raises(ConfigError, match="DATA=<file>"):
        load_federation(name, request)
    with pytest.raises(DataError, match="DATA=<file>"):
        load_federation(name, Request(name, "s", {"client-1": "m"}, 8, 8, 8, 0, tmp_path / "absent.json"))


def test_write_parsed_writes_exactly_the_six_fields_and_counts_every_row(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    counts = write_parsed(HERE / "mathinstruct.json", "mathinstruct", out)
    lines = read_lines(out)
    assert {tuple(line) for line in lines} == {("row", "status", "reason", "question", "options", "answer")}
    assert sum(counts.values()) == len(lines) == len(read_lines(HERE / "mathinstruct.expected.jsonl"))
    assert counts["accepted"] == 15
    assert counts["no-output"] == 2


def test_write_parsed_refuses_an_unknown_format_and_its_own_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aqua_rat, cot_collection, mathinstruct"):
        write_parsed(HERE / "mathinstruct.json", "csv", tmp_path / "out.jsonl")
    own = tmp_path / "own.json"
    own.write_text("[]")
    with pytest.raises(ConfigError, match="OUT"):
        write_parsed(own, "mathinstruct", own)
    with pytest.raises(DataError, match="cannot be written"):
        write_parsed(HERE / "mathinstruct.json", "mathinstruct", own / "out.jsonl")
    assert own.read_text() == "[]"


def test_a_row_with_garbled_or_endless_text_is_dropped(tmp_path: Path) -> None:
    good = {"options": ["A)1", "B)2"], "correct": "A", "rationale": "One."}
    rows = [{"question": "half a pair \ud800?", **good}, {"question": "x" * 70_000, **good}]
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [row.reason for row in aqua_rat.parse(tmp_path / "f.jsonl")] == ["garbled-text", "too-long"]


def test_long_runs_of_one_character_do_not_stall_a_loader(tmp_path: Path) -> None:
    run = 30_000
    rows = [
        {"question": f"{fill * run}?", "options": ["A)1", f"B)A{fill * run}x", "C)3", "D)4"], "correct": "A"}
        | {"rationale": f"The answer is{fill * run}A{fill * run}z"}
        for fill in (" ", "-", "(", "A ", "1.")
    ]
    source = tmp_path / "f.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    started = time.process_time()
    # Too few rows for a federation, so every step before the split runs.
    with pytest.raises(DataError, match=r"f\.jsonl: "):
        aqua_rat.federation(Request("d", "s", {"client-1": "m"}, 8, 8, 8, 0, source))
    assert time.process_time() - started < 5
