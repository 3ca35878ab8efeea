"""The nouns of the suite: questions, items and everything that parties send to each other.

Wire types (`SampleId`, `Response`, `Reward`, `WeightsHash`) are all that may enter the exchange. None of them
has a field that could hold a private question, answer or rationale: those live in `Item`, which is no wire
type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada.errors import DataError

Letter = Literal["A", "B", "C", "D"]
LETTERS: tuple[Letter, ...] = ("A", "B", "C", "D")
Text = Annotated[str, Field(max_length=65_536)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_TRACES = 32
"""Most traces of one question in a message."""


class Record(BaseModel):
    """Base of all records: immutable, strict types, unknown fields are an error."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, strict=True, extra="forbid")


class Question(Record):
    """A question with exactly four options, without its answer (a line of public.jsonl)."""

    id: Id
    question: Annotated[Text, Field(min_length=1)]
    options: Annotated[tuple[str, ...], Field(min_length=4, max_length=4, strict=False)]


class Item(Question):
    """A question with its answer: private or sealed data, never a wire type."""

    answer: Letter
    rationale: str | None = None
    domain: str = "all"
    group: str = ""

    def public(self) -> Question:
        """The question alone: answer, rationale, domain and group are gone."""
        return Question(id=self.id, question=self.question, options=self.options)

    def without_rationale(self) -> Item:
        """What a client may train on (paper, Section VI-A: local data without reasoning)."""
        return self.model_copy(update={"rationale": None})


class SampleId(Record):
    """A public sample that the sender asks the recipient to answer."""

    id: Id


class Response(Record):
    """A reasoning text on a public sample.

    ``confidence`` is the sender's mean token log-probability (nats); an addition to the paper, off by
    default (`exchange.publish_confidence`).
    """

    id: Id
    text: Text
    confidence: Finite | None = None


class Reward(Record):
    """Rewards of one trained sample (paper, Eqs. 5-7); ``partner`` is the other party of the pair."""

    id: Id
    partner: Id
    round_gain: Finite | None = None
    batch_gain: Finite | None = None
    reward: Finite


class WeightsHash(Record):
    """What stands for a weight delta that is too large to be published."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Trace(Record):
    """One of several solutions of a public question that a tree search found (baselines, section 8c).

    Attributes:
        place: 1 for the best, then 2, ...; with the id, the trace's name.
        letter: the answer that the text gives, by the sender's reading.
        reward: share of the votes for it.
    """

    id: Id
    place: Annotated[int, Field(ge=1, le=MAX_TRACES)]
    text: Annotated[str, Field(min_length=1, max_length=16_384)]
    letter: Letter
    reward: Annotated[float, Field(ge=0, le=1)]


class Verdict(Record):
    """Whether another model, given the beginning of a trace, came to the same answer."""

    id: Id
    place: Annotated[int, Field(ge=1, le=MAX_TRACES)]
    consistent: bool


class Prediction(Record):
    """One evaluated test question: the answer, its letter, and whether that is right. Private to its party.

    Attributes:
        truncated: the answer hit the limit of its length.
        text: the answer; empty where a run kept none.
    """

    id: Id
    letter: Letter | None = None
    correct: bool
    truncated: bool
    text: str = ""


class Replayed(Record):
    """A public sample that this party selected in another run: private, given by the host, no wire type.

    Attributes:
        round: in which it was trained on. partner: the other party of the pair.
    """

    round: Annotated[int, Field(ge=1)]
    partner: Id
    id: Id


class SampleLog(Record):
    """What a party knows of a sample that it trained on: private, for diagnostics on the host side.

    Attributes:
        partner: the other party of the pair. selected_by: ``prototypes``, ``filter``, ``all``, ``random``,
            ``replay`` or ``oracle``.
        chosen, rejected: letters of the preferred and the other text.
        exploit, explore, score: filter outputs at selection time (Eqs. 8-10); None in round 1.
        round_gain, batch_gain, reward: as trained on (Eqs. 5-7), before a late round gain is known.
        paper_gain: batch-level gain by the paper's pairing, whatever the profile. paired_gain: relative
            gain of the same sample from before to after the round's training (method, section 2.6).
        likelihood: mean token log-probability of the preferred text after training (nats).
    """

    id: Id
    partner: Id
    selected_by: str
    chosen: Letter | None = None
    rejected: Letter | None = None
    same_text: bool = False
    exploit: Finite | None = None
    explore: Finite | None = None
    score: Finite | None = None
    round_gain: Finite | None = None
    batch_gain: Finite | None = None
    paper_gain: Finite | None = None
    paired_gain: Finite | None = None
    likelihood: Finite | None = None
    reward: Finite | None = None


R = TypeVar("R", bound=Record)


def dump_jsonl(records: Iterable[Record]) -> str:
    """JSON lines with sorted keys and without fields that are None: the same records, the same bytes."""
    return "".join(
        json.dumps(
            record.model_dump(mode="json", exclude_none=True),
            sort_keys=True,
            ensure_ascii=False,
            allow_nan=False,
        )
        + "\n"
        for record in records
    )


def parse_jsonl(kind: type[R], text: str, *, source: str) -> list[R]:
    """Parse JSON lines into records.

    Raises:
        DataError: naming ``source``, the line and the reason.
    """
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate(json.loads(line, parse_constant=_no_constant)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}, line {number}: {explain(error)}") from error
    return records


def read_jsonl(kind: type[R], path: Path) -> list[R]:
    """Read a JSON lines file into records; see `parse_jsonl`.

    Raises:
        DataError: when the file is missing, not UTF-8, or a line is not a ``kind``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return parse_jsonl(kind, text, source=str(path))


def explain(error: Exception) -> str:
    """One line that says what is wrong with a record."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        return f"field '{where}': {first['msg']}"
    return str(error)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON allows")
