"""The ledger: whole lines only, whatever a killed writer left."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada.ledger import Ledger


def test_events_are_read_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.read() == []
    ledger.write("started", stage="server/r01-learn", attempt="01-a")
    ledger.write("committed", stage="server/r01-learn", seconds=1.5)
    assert [event["event"] for event in ledger.read()] == ["started", "committed"]
    assert ledger.read()[1]["seconds"] == 1.5
    assert ledger.read()[0]["time"] <= ledger.read()[1]["time"]


@pytest.mark.parametrize("half", [b'{"event": "sta', b"{", b'{"event": "started", "detail": "\xc3', b'"'])
def test_a_half_line_is_closed_and_left_out(half: bytes, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.write("first")
    with ledger.path.open("ab") as file:
        file.write(half)
    assert [event["event"] for event in ledger.read()] == ["first"]
    ledger.write("second")
    assert [event["event"] for event in ledger.read()] == ["first", "second"]
    assert ledger.path.read_bytes().endswith(b"}\n")


@given(details=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=4))
def test_any_detail_stays_one_event(details: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl")
    for detail in [*details, "one\u2028line\x85here\n"]:
        ledger.write("failed", detail=detail)
    assert [event["detail"] for event in ledger.read()] == [*details, "one\u2028line\x85here\n"]
