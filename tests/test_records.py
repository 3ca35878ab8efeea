"""Records: strict, round trips, and no wire type that could hold a private question."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada.errors import DataError
from lada.records import (
    Item,
    Prediction,
    Question,
    Record,
    Response,
    Reward,
    SampleId,
    SampleLog,
    dump_jsonl,
    parse_jsonl,
    read_jsonl,
)

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.one_of(
    st.builds(SampleId, id=IDS),
    st.builds(Response, id=IDS, text=TEXTS, confidence=st.none() | FLOATS),
    st.builds(Reward, id=IDS, partner=IDS, round_gain=st.none() | FLOATS, batch_gain=FLOATS, reward=FLOATS),
    st.builds(
        Item,
        id=IDS,
        question=TEXTS.filter(bool),
        options=st.tuples(TEXTS, TEXTS, TEXTS, TEXTS),
        answer=st.sampled_from("ABCD"),
        rationale=st.none() | TEXTS,
    ),
    st.builds(
        Prediction, id=IDS, letter=st.none() | st.just("A"), correct=st.booleans(), truncated=st.booleans()
    ),
    st.builds(SampleLog, id=IDS, partner=IDS, selected_by=TEXTS, likelihood=st.none() | FLOATS),
)


@given(record=RECORDS)
def test_records_round_trip(record: Record) -> None:
    text = dump_jsonl([record, record])
    assert text.count("\n") == 2
    assert parse_jsonl(type(record), text, source="here") == [record, record]
    assert dump_jsonl(parse_jsonl(type(record), text, source="here")) == text


@given(text=st.text(max_size=80))
def test_any_text_parses_or_raises_a_data_error(text: str) -> None:
    for kind in (Item, Response):
        try:
            parsed = parse_jsonl(kind, text, source="here")
        except DataError as error:
            assert str(error).startswith("here, line ")
        else:
            assert parsed == []


def question(**changes: object) -> str:
    fields: dict[str, object] = {"id": "q1", "question": "?", "options": ["1", "2", "3", "4"]}
    return Question.model_validate(fields | changes).model_dump_json()


@pytest.mark.parametrize(
    "options", [["1", "2", "3"], ["1", "2", "3", "4", "5"], [], ["1", "2", "3", 4], "1234"]
)
def test_a_question_has_four_options_of_text(options: object) -> None:
    with pytest.raises(ValueError, match="options"):
        question(options=options)


@pytest.mark.parametrize("name", ["", "../q", "a/b", ".hidden", "-x", "a b", "é", "x" * 129, "q1\n"])
def test_an_id_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="id"):
        question(id=name)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"id": "q1", "partner": "server", "reward": 0.5', "delimiter"),
        ('{"id": "q1", "partner": "server", "reward": NaN}', "NaN is not a number that JSON allows"),
        ('{"id": "q1", "partner": "server", "reward": -Infinity}', "-Infinity is not a number"),
        ('{"id": "q1", "partner": "server", "reward": 1e999}', "field 'reward'"),
        ('{"id": "q1", "partner": "server", "reward": "0.5"}', "field 'reward'"),
        ('{"id": "q1", "partner": "server"}', "field 'reward'"),
        ('{"id": "q1", "partner": "server", "reward": 1, "question": "secret?"}', "field 'question'"),
        ("[1, 2]", "record"),
        ("null", "record"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(line: str, part: str) -> None:
    good = dump_jsonl([Reward(id="q0", partner="server", reward=1.0)])
    with pytest.raises(DataError) as caught:
        parse_jsonl(Reward, good + line + "\n", source="rewards.jsonl")
    assert str(caught.value).startswith("rewards.jsonl, line 2: ")
    assert part in str(caught.value)


def test_line_ends_inside_a_text_stay_inside() -> None:
    record = Response(id="q1", text="a\nb\r\nc\u2028d\x85e\x1ef")
    text = dump_jsonl([record])
    assert text.count("\n") == 1
    assert parse_jsonl(Response, text, source="here") == [record]


def test_missing_and_foreign_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_jsonl(Item, tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.jsonl: cannot be read"):
        read_jsonl(Item, tmp_path / "binary.jsonl")


def test_what_an_item_shows_to_whom() -> None:
    item = Item(
        id="q1", question="?", options=("1", "2", "3", "4"), answer="B", rationale="so", domain="d", group="g"
    )
    assert set(item.public().model_dump()) == {"id", "question", "options"}
    assert item.without_rationale().rationale is None
    assert item.without_rationale().answer == "B"
    with pytest.raises(ValueError, match="frozen"):
        item.answer = "A"  # type: ignore[misc]
