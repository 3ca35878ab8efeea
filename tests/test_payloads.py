"""Bytes of unknown origin: records and tensors. Every fault is an ExchangeError with its own check."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lada.config import ExchangeOptions
from lada.errors import ExchangeError
from lada.payloads import Origin, check_metrics, check_records, check_tensors, tensor_schema
from lada.records import Question, Response, Reward

ORIGIN = Origin("client-1", "r02-learn", "public/server/file")
LIMITS = ExchangeOptions(max_line_bytes=1000, max_items=3)


def refused(check: str, function, *arguments, **options) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(ExchangeError) as caught:
        function(*arguments, **options)
    error = caught.value
    assert (error.party, error.stage, error.file) == (ORIGIN.party, ORIGIN.stage, ORIGIN.file)
    assert error.check == check
    return error.detail


def lines(*records: dict[str, object]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


TEXT = {"id": "q1", "text": "so"}


# -- records


def test_legal_records_pass() -> None:
    found = check_records(Response, lines(TEXT), ORIGIN, limits=LIMITS, legal_ids={"q1"})
    assert found == [Response(id="q1", text="so")]
    assert check_records(Response, b"", ORIGIN, limits=LIMITS, legal_ids=set()) == []


@pytest.mark.parametrize(
    ("check", "content", "part"),
    [
        ("schema", lines(TEXT)[:-1], "cut off"),
        ("schema", lines(TEXT)[:-5] + b"\n", "line 1"),
        ("schema", lines(TEXT, {"id": "q2", "text": 3}), "line 2: field 'text'"),
        ("schema", lines({**TEXT, "question": "secret"}), "field 'question'"),
        ("schema", b'{"id": "q1", "text": "so", "confidence": NaN}\n', "NaN"),
        ("schema", b'{"id": "../q1", "text": "so"}\n', "field 'id'"),
        ("encoding", pickle.dumps({"id": "q1"}, protocol=2), "UTF-8"),
        ("encoding", b'{"id": "q1", "text": "\xff"}\n', "UTF-8"),
        ("line-size", lines({"id": "q1", "text": "x" * 1000}), "at most 1000"),
        ("item-count", lines(*[{"id": f"q{n}", "text": ""} for n in range(4)]), "at most 3"),
        ("public-ids", lines({"id": "private-7", "text": ""}), "'private-7' is not in the public set"),
        ("once", lines(TEXT, TEXT), "'q1' stands twice"),
    ],
)
def test_bad_records_are_refused_by_name(check: str, content: bytes, part: str) -> None:
    detail = refused(check, check_records, Response, content, ORIGIN, limits=LIMITS, legal_ids={"q1", "q2"})
    assert part in detail


def test_a_question_with_three_options_is_refused() -> None:
    content = lines({"id": "q1", "question": "?", "options": ["1", "2", "3"]})
    assert "options" in refused("schema", check_records, Question, content, ORIGIN, limits=LIMITS)


def test_one_sample_may_be_rewarded_once_per_partner() -> None:
    both = [{"id": "q1", "partner": f"client-{k}", "reward": 0.5} for k in (1, 2)]
    assert len(check_records(Reward, lines(*both), ORIGIN, limits=LIMITS, legal_ids={"q1"})) == 2
    refused("once", check_records, Reward, lines(both[0], both[0]), ORIGIN, limits=LIMITS, legal_ids={"q1"})


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": "1"}',
        b'{"a": true}',
        b'{"a": {"b": 1}}',
        b"[1]",
        b'{"a": 1',
        b"\xff",
        b"",
    ],
)
def test_metrics_are_finite_numbers(content: bytes) -> None:
    refused("schema", check_metrics, content, ORIGIN)


def test_legal_metrics_pass() -> None:
    assert check_metrics(b'{"accuracy": 0.5, "count": 3}\n', ORIGIN) == {"accuracy": 0.5, "count": 3.0}


# -- tensors

GOOD = bytes(save({"a": np.ones((2, 3), dtype=np.float32), "b": np.zeros(4, dtype=np.int64)}))
SCHEMA = {"a": ("F32", (2, 3)), "b": ("I64", (4,))}


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def bf16(*words: int) -> bytes:
    data = struct.pack(f"<{len(words)}H", *words)
    return with_header({"a": entry([len(words)], [0, len(data)], "BF16")}, data)


def test_legal_tensors_pass() -> None:
    assert check_tensors(GOOD, ORIGIN, expected=SCHEMA) == ["a", "b"]
    assert tensor_schema(GOOD, ORIGIN) == SCHEMA
    assert check_tensors(bf16(0x3F80, 0x0000, 0xFF7F), ORIGIN) == ["a"]
    assert check_tensors(bytes(save({})), ORIGIN) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_are_refused(value: float, dtype: type) -> None:
    array = np.zeros(1000, dtype=dtype)
    array[-1] = value
    assert "'a' holds NaN" in refused("finite", check_tensors, bytes(save({"a": array})), ORIGIN)


@pytest.mark.parametrize("word", [0x7FC0, 0x7F80, 0xFF80, 0x7F81, 0xFFFF])
def test_nan_and_infinity_are_refused_in_bfloat16(word: int) -> None:
    assert "'a' holds NaN" in refused("finite", check_tensors, bf16(0x3F80, word), ORIGIN)


@pytest.mark.parametrize(
    ("check", "tensors", "part"),
    [
        ("tensor-keys", {"a": np.ones((2, 3), np.float32)}, "'b' is missing"),
        (
            "tensor-keys",
            {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int64), "c": np.zeros(1, np.float32)},
            "'c' is unexpected",
        ),
        ("tensor-schema", {"a": np.ones((3, 2), np.float32), "b": np.zeros(4, np.int64)}, "'a' is"),
        ("tensor-schema", {"a": np.ones((2, 3), np.float16), "b": np.zeros(4, np.int64)}, "'a' is"),
        ("tensor-schema", {"a": np.ones((2, 3, 1), np.float32), "b": np.zeros(4, np.int64)}, "'a' is"),
    ],
)
def test_other_keys_shapes_and_dtypes_are_refused(
    check: str, tensors: dict[str, np.ndarray], part: str
) -> None:
    assert part in refused(check, check_tensors, bytes(save(tensors)), ORIGIN, expected=SCHEMA)


F32 = b"\0" * 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        GOOD[:-1],
        GOOD[:20],
        GOOD + b"\0",
        pickle.dumps({"a": [1.0]}),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 17 * 2**20) + b" " * 17 * 2**20,
        with_header(b"not json"),
        with_header([1, 2]),
        with_header({"a": 3}),
        with_header({"a": {"dtype": "F32"}}),
        with_header({"a": entry("x", [0, 4])}, F32),
        with_header(b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', F32),
        with_header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', F32),
        with_header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, F32),  # overlapping
        with_header({"a": entry([2], [0, 8]), "b": entry([1], [4, 8])}, F32 * 2),  # overlapping
        with_header({"a": entry([1], [4, 8])}, F32 * 2),  # a hole
        with_header({"a": entry([1], [0, 2**62])}, F32),
        with_header({"a": entry([1], [4, 0])}, F32),
        with_header({"a": entry([-1], [0, 4])}, F32),
        with_header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ],
    ids=lambda content: f"{len(content)}-{content[8:40]!r}",
)
def test_what_is_no_safetensors_file_is_refused(content: bytes) -> None:
    refused("safetensors", check_tensors, content, ORIGIN)


@pytest.mark.parametrize("size", [2**60, 17 * 2**20])
def test_a_huge_header_is_refused_unread(size: int) -> None:
    content = struct.pack("<Q", size) + b" " * min(size, 17 * 2**20)
    assert f"header of {size} bytes" in refused("safetensors", check_tensors, content, ORIGIN)


@pytest.mark.parametrize(
    "content",
    [
        with_header({"a": entry([2**40, 2**40], [0, 4])}, F32),
        with_header({"a": entry([1], [0, 4], "OBJECT")}, F32),
        with_header({"a": entry([4], [0, 4], "BOOL")}, F32),
    ],
)
def test_impossible_sizes_and_unknown_dtypes_are_refused(content: bytes) -> None:
    refused("tensor-schema", check_tensors, content, ORIGIN)


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_tensors_pass_or_raise_exchange_errors(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        check_tensors(bytes(content), ORIGIN, expected=SCHEMA)
    except ExchangeError as error:
        assert error.party == "client-1"


@given(content=st.binary(max_size=200))
def test_any_bytes_pass_or_raise_exchange_errors(content: bytes) -> None:
    for check in (
        lambda: check_records(Response, content, ORIGIN, limits=LIMITS, legal_ids={"q1"}),
        lambda: check_tensors(content, ORIGIN),
        lambda: check_tensors(with_header(content), ORIGIN),
        lambda: check_metrics(content, ORIGIN),
    ):
        try:
            check()
        except ExchangeError as error:
            assert error.file == ORIGIN.file
