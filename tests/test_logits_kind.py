"""Numbers on public texts in the exchange: what passes, what is refused, and that nothing else fits in."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lada.config import ExchangeOptions
from lada.errors import ExchangeError
from lada.incoming import check_commit, published_schema
from lada.manifest import Manifest, Outbox, Payload
from lada.payloads import LOGITS, Origin, check_logits
from lada.rundir import RunDir, Stage
from tests.fake_runs import IDS, adapter, commit_stage, make_run

ORIGIN = Origin("client-1", "r01-share", "logits.safetensors")
LIMITS = ExchangeOptions()
Arrays = dict[str, np.ndarray]


def seq() -> Arrays:
    return {
        "ce": np.array([0.5, 0.0], dtype=np.float32),
        "logits": np.array([[0, -1.5], [0, -2], [0, -60_000]], dtype=np.float16),
        "ids": np.array([[5, 3], [2, 1], [0, 9]], dtype=np.int32),
    }


def letters() -> Arrays:
    return {
        "ce": np.ones(3, dtype=np.float32),
        "logits": np.zeros((3, 4), dtype=np.float16),
        "letters": np.array([0, 3, 1], dtype=np.uint8),
    }


def check(arrays: Arrays, num_public: int = 6) -> dict[str, np.ndarray]:
    return check_logits(bytes(save(arrays)), ORIGIN, limits=LIMITS, num_public=num_public)


@pytest.mark.parametrize("arrays", [seq(), letters(), {"letters": np.array([4, 0], dtype=np.uint8)}])
def test_legal_messages_come_back(arrays: Arrays) -> None:
    found = check(arrays)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_oracle_10_a_letter_message_of_1000_texts_has_13000_bytes_of_content() -> None:
    count = 1000
    arrays: Arrays = {
        "ce": np.ones(count, np.float32),
        "logits": np.zeros((count, 4), np.float16),
        "letters": np.zeros(count, np.uint8),
    }
    content = bytes(save(arrays))
    header = int.from_bytes(content[:8], "little")
    assert sum(array.nbytes for array in arrays.values()) == 13_000 == len(content) - 8 - header


def changed(arrays: Arrays, name: str, array: np.ndarray) -> Arrays:
    return {**arrays, name: array}


@pytest.mark.parametrize(
    ("check_name", "arrays"),
    [
        ("tensor-keys", changed(seq(), "question", np.zeros(2, np.uint8))),
        ("tensor-schema", changed(seq(), "logits", np.zeros((3, 2), np.float32))),
        ("tensor-schema", changed(seq(), "ids", np.zeros((3, 2), np.int64))),
        ("tensor-schema", changed(seq(), "ids", np.zeros((3, 3), np.int32))),
        ("tensor-schema", changed(seq(), "logits", np.zeros(6, np.float16))),
        ("tensor-schema", changed(seq(), "ce", np.zeros(2, np.float64))),
        ("tensor-schema", {name: array for name, array in seq().items() if name != "logits"}),
        ("finite", changed(seq(), "ce", np.array([np.nan, 0], np.float32))),
        ("finite", changed(seq(), "logits", np.array([[0, -np.inf]] * 3, np.float16))),
        ("finite", changed(seq(), "logits", np.array([[0, np.nan]] * 3, np.float16))),
        ("bounds", changed(seq(), "ce", np.array([-0.1, 0], np.float32))),
        ("bounds", changed(seq(), "ce", np.array([2e6, 0], np.float32))),
        ("bounds", changed(seq(), "logits", np.array([[0.5, 0]] * 3, np.float16))),
        ("bounds", changed(seq(), "ids", np.array([[-1, 0]] * 3, np.int32))),
        ("bounds", changed(seq(), "ids", np.array([[2**25, 0]] * 3, np.int32))),
        ("bounds", {"letters": np.array([5], np.uint8)}),
        ("item-count", {"letters": np.zeros(7, np.uint8)}),
        ("item-count", changed(letters(), "letters", np.zeros(2, np.uint8))),
        ("item-count", {}),
        ("item-count", {"logits": np.zeros((3, 4), np.float16)}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_everything_else_is_refused_by_name(check_name: str, arrays: Arrays) -> None:
    with pytest.raises(ExchangeError) as caught:
        check(arrays)
    assert (caught.value.check, caught.value.file) == (check_name, ORIGIN.file)


def test_no_text_fits_into_a_message() -> None:
    """Every array is of numbers; a header comment, where safetensors would allow words, is refused."""
    assert {dtype for dtype, *_ in LOGITS.values()} == {"U8", "F32", "F16", "I32"}
    with pytest.raises(ExchangeError) as caught:
        content = bytes(save(seq(), metadata={"note": "a private question"}))
        check_logits(content, ORIGIN, limits=LIMITS, num_public=6)
    assert caught.value.check == "metadata"
    hidden = json.dumps(
        {"letters": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "x": "words"}
    ).encode()
    with pytest.raises(ExchangeError):
        check_logits(struct.pack("<Q", len(hidden)) + hidden + b"\0", ORIGIN, limits=LIMITS, num_public=6)


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_messages_pass_or_raise_exchange_errors(data: st.DataObject) -> None:
    content = bytearray(save(data.draw(st.sampled_from([seq(), letters()]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = check_logits(bytes(content), ORIGIN, limits=LIMITS, num_public=6)
    except ExchangeError as error:
        assert error.party == "client-1"
    else:
        assert all(np.isfinite(array.astype(np.float64)).all() for array in found.values())


# -- in a commit


def outbox(arrays: Arrays, items: int, **more: Payload) -> Outbox:
    found = Outbox()
    found.send("server", "logits.safetensors", Payload("logits", items, bytes(save(arrays))))
    for name, payload in more.items():
        found.send("server", f"{name}.safetensors", payload)
    return found


@pytest.fixture()
def committed(tmp_path: Path, no_fsync: None) -> Callable[[Outbox], RunDir]:
    def make(found: Outbox) -> RunDir:
        run = make_run(tmp_path)
        commit_stage(run, Stage(1, "learn", "client-1"), outbox=found)
        return run

    return make


def verify(run: RunDir, **options) -> Manifest:  # type: ignore[no-untyped-def]
    stage = Stage(1, "learn", "client-1")
    return check_commit(run, stage, limits=LIMITS, public_ids=IDS, **options)


def test_a_commit_with_logits_is_accepted(committed: Callable[[Outbox], RunDir]) -> None:
    assert "logits" in {entry.kind for entry in verify(committed(outbox(seq(), 2))).files}


def test_a_wrong_number_of_items_is_refused(committed: Callable[[Outbox], RunDir]) -> None:
    with pytest.raises(ExchangeError, match="'item-count' failed: 2 texts, manifest says 3"):
        verify(committed(outbox(seq(), 3)))


def test_more_texts_than_public_questions_are_refused(committed: Callable[[Outbox], RunDir]) -> None:
    many = {"letters": np.zeros(len(IDS) + 1, np.uint8)}
    with pytest.raises(ExchangeError, match="'item-count'"):
        verify(committed(outbox(many, len(IDS) + 1)))


def test_logits_are_never_taken_for_the_adapter(committed: Callable[[Outbox], RunDir]) -> None:
    both = outbox(seq(), 2, adapter=Payload("adapters", 1, adapter()))
    run = committed(both)
    schema = published_schema(run, Stage(1, "learn", "client-1"))
    assert schema == {"layer.weight": ("F32", (2, 3))}
    verify(run, adapter_schema=schema)


def test_without_an_adapter_there_is_no_schema(committed: Callable[[Outbox], RunDir]) -> None:
    assert published_schema(committed(outbox(seq(), 2)), Stage(1, "learn", "client-1")) is None
