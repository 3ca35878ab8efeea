"""From text to letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada.answers import extract_letter
from lada.records import LETTERS

OPTIONS = ("12", "15 km", "a red fox", "none of these")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B", "B"),
        ("so 3 + 4 = 7\nThe answer is C", "C"),
        ("the answer is: (d).", "D"),
        ("The answer is A. No, the answer is B.", "B"),  # the last marker counts
        ("(A) is wrong, therefore (C)", "C"),
        ("The answer is B, not (C)", "B"),  # a marker comes before a bracket
        ("It must be 15 km in all.", "B"),
        ("It must be 15 KM.", "B"),
        ("either 12 or 15 km", None),  # two options
        ("It is 125 km", None),  # no option as a whole word
        ("D", "D"),
        (" D. ", "D"),
        ("E", None),
        ("The answer is E", None),
        ("The answer is Apple", None),  # a word is no letter
        ("Answer", None),
        ("", None),
        ("   \n", None),
    ],
)
def test_rules_in_their_order(text: str, letter: str | None) -> None:
    assert extract_letter(text, OPTIONS) == letter


def test_an_empty_option_stands_in_no_text() -> None:
    assert extract_letter("some text", ("", " ", "!", "text")) == "D"


@given(text=st.text(), options=st.lists(st.text(), min_size=4, max_size=4))
def test_never_raises_and_gives_a_letter_or_none(text: str, options: list[str]) -> None:
    assert extract_letter(text, options) in (*LETTERS, None)


@given(
    before=st.text(max_size=40),
    letter=st.sampled_from(LETTERS),
    options=st.lists(st.text(max_size=20), min_size=4, max_size=4),
)
def test_a_marker_at_the_end_always_decides(before: str, letter: str, options: list[str]) -> None:
    assert extract_letter(f"{before}\nThe answer is {letter}", options) == letter
