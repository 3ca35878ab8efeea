"""Public questions that the server's model writes during a run, and the votes that clients cast on them.

The two kinds of message that only WASP sends (baselines, section 5). From the commit that publishes it on, a
question is public: its id is among those that messages of later stages may name. Ids are positions in the
order of publication, so they need no register: whoever has the earlier messages knows the next legal id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lada.payloads import Origin, check_tensors
from lada.records import Item, Letter, Record, Text

QUESTIONS, VOTES = "questions.jsonl", "votes.safetensors"
"""Names of the two files; no other kind of message may use them."""
VOTE_KEYS = ("far", "near")


class Synthetic(Record):
    """A question that the server's model wrote, with its solution; only the server may send it, to all.

    It is the one wire type with fields that could hold a private question. The server has none to train on.

    Attributes:
        id: `synthetic_id` of its position in the order of publication.
        rationale: without the marker line. answer: the stated letter, which may be wrong.
    """

    id: Annotated[str, Field(pattern=r"^syn-[0-9]{6}$")]
    question: Annotated[Text, Field(min_length=1)]
    options: Annotated[tuple[str, ...], Field(min_length=4, max_length=4, strict=False)]
    rationale: Annotated[Text, Field(min_length=1)]
    answer: Letter

    @field_validator("options")
    @classmethod
    def _distinct(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        squeezed = {" ".join(option.split()) for option in options}
        if len(squeezed) < len(options) or "" in squeezed:
            raise ValueError("the four options must be distinct and not empty")
        return options

    def item(self) -> Item:
        """As a solved question, e.g. to be rendered as a prompt and a training text."""
        return Item(
            id=self.id,
            question=self.question,
            options=self.options,
            answer=self.answer,
            rationale=self.rationale,
            domain="synthetic",
        )


def synthetic_id(position: int) -> str:
    """Id of the question at a position (from 0) in the order of publication."""
    return f"syn-{position:06d}"


def check_numbering(
    records: Sequence[Synthetic], origin: Origin, *, first: int, public_ids: Collection[str] = ()
) -> None:
    """Questions are numbered in the order of publication and never stand for another question.

    Args:
        first: how many were published in earlier stages.
        public_ids: ids of the public set, which a synthetic question must not have.

    Raises:
        ExchangeError: check ``synthetic-ids``.
    """
    for position, record in enumerate(records, start=first):
        if record.id != synthetic_id(position):
            raise origin.error("synthetic-ids", f"id '{record.id}', expected '{synthetic_id(position)}'")
        if record.id in public_ids:
            raise origin.error("synthetic-ids", f"id '{record.id}' is one of the public set")


def read_votes(
    content: bytes, origin: Origin, *, num_questions: int, most: int
) -> Mapping[str, NDArray[np.float32]]:
    """Check and open a file of votes: two histograms, ``near`` and ``far``, float32 [num_questions].

    Choice: arrays, not JSON lines: 8 bytes a question are the method's formula (baselines, section 10).
    Entries may be negative, since noise may have been added.

    Args:
        num_questions: questions published before the sender's stage.
        most: largest absolute value of an entry; no entry can count more private questions than there are.

    Raises:
        ExchangeError: checks ``safetensors``, ``tensor-keys``, ``tensor-schema``, ``finite``, ``votes``.
    """
    check_tensors(content, origin, expected=dict.fromkeys(VOTE_KEYS, ("F32", (num_questions,))))
    tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    found = {name: np.frombuffer(bytes(entry["data"]), dtype="<f4") for name, entry in tensors}
    for name, values in found.items():
        largest = float(np.abs(values).max(initial=0.0))
        if largest > most:
            raise origin.error("votes", f"'{name}' counts {largest:g} votes; at most {most} are legal")
    return found
