"""What the loaders share: parsed rows, text cleaning, option labels and answer statements.

Rules after the design page on data, section 4. A row that cannot be read without guessing is dropped, and
every drop has a reason; nothing is repaired silently.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["accepted", "dropped"]
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARS = 65_536  # as records.Text
_FOLD = str.maketrans("（）［］：．＝\u00a0\u3000", "()[]:.=  ")  # one to one, so positions stay
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BRACKET_LABEL = re.compile(r"(?<!\S)\(([A-J])\)")
_CUT_OFF = re.compile(r"(?<!\S)\([A-J]?\s*$")


class Dropped(Exception):
    """A record is no usable multiple-choice question; the reason is a short slug."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Content:
    """What a record holds once read. ``options`` in file order, ``answer`` a label from A on."""

    question: str
    options: tuple[str, ...]
    answer: str
    rationale: str | None = None
    group: str = ""
    id: str = ""


@dataclass(frozen=True)
class ParsedRow:
    """One record of a file.

    Attributes:
        row: index in file order (from 0), or the record's key.
        status: ``accepted`` or ``dropped``; reason: why it was dropped, None where accepted.
        question, options, answer, rationale: None where dropped; all options, two or more.
        id, group: as the file gives them; empty where it gives none.
    """

    row: int | str
    status: Status
    reason: str | None = None
    question: str | None = None
    options: tuple[str, ...] | None = None
    answer: str | None = None
    rationale: str | None = None
    id: str = ""
    group: str = ""


def parse_rows(
    records: Iterable[tuple[int | str, object]],
    extract: Callable[[Mapping[str, object]], Content],
    keys: Callable[[Content], tuple[str, ...]],
) -> Iterator[ParsedRow]:
    """One row per record, in order; ``extract`` raises `Dropped` for what it cannot read.

    Of rows that share one of their ``keys`` (copies of one question) the first stays. Hashes alone are
    kept, so a file of any size can be streamed.
    """
    seen: dict[int, int] = {}
    for row, record in records:
        try:
            if not isinstance(record, Mapping):
                raise Dropped("not-an-object")
            content = extract(record)
            _check_copy(seen, keys(content), content)
        except Dropped as drop:
            yield ParsedRow(row, "dropped", drop.reason)
        else:
            yield ParsedRow(row, "accepted", None, **vars(content))


def _check_copy(seen: dict[int, int], keys: tuple[str, ...], content: Content) -> None:
    gold = _digest(normalise_option(content.options[LABELS.index(content.answer)]))
    hashes = [_digest(key) for key in keys]
    for digest in hashes:
        if digest in seen:
            raise Dropped("duplicate" if seen[digest] == gold else "conflicting-duplicate")
    seen.update((digest, gold) for digest in hashes)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def field(record: Mapping[str, object], name: str) -> str:
    """A required text of a record, cleaned.

    Raises:
        Dropped: when it is missing, no text, empty, garbled or longer than a record may hold.
    """
    value = record.get(name)
    if value is None:
        raise Dropped(f"no-{name}")
    if not isinstance(value, str):
        raise Dropped(f"{name}-not-text")
    text = clean(value)
    if not text:
        raise Dropped(f"empty-{name}")
    return text


def optional_text(record: Mapping[str, object], name: str) -> str | None:
    """A text that may be missing: None instead of a drop."""
    value = record.get(name)
    return (clean(value) or None) if isinstance(value, str) else None


def clean(text: str) -> str:
    """Line ends as line feeds, tabs as blanks, no control characters, no white space at the ends."""
    if _SURROGATE.search(text):
        raise Dropped("garbled-text")
    if len(text) > MAX_CHARS:
        raise Dropped("too-long")
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")).strip()


def fold(text: str) -> str:
    """Full-width brackets, colons and blanks as plain ones; every character keeps its position."""
    return text.translate(_FOLD)


def normalise_option(text: str) -> str:
    """Options are equal when these are: no blanks, no commas, no case, no final stop."""
    return re.sub(r"[\s,]+", "", text.casefold()).rstrip(".")


def checked_options(texts: Iterable[str]) -> tuple[str, ...]:
    """The options, stripped.

    Raises:
        Dropped: fewer than two or more than 26, an empty one, or two equal ones.
    """
    options = tuple(text.strip() for text in texts)
    if len(options) < 2:
        raise Dropped("one-option" if options else "no-options")
    if len(options) > len(LABELS):
        raise Dropped("too-many-options")
    if not all(options):
        raise Dropped("empty-option")
    if len({normalise_option(option) for option in options}) < len(options):
        raise Dropped("equal-options")
    return options


def bracketed_options(text: str) -> tuple[str, ...]:
    """Options of ``(A) x (B) y ...`` in running text, raw. Each label must be the next one expected.

    Choice: labels stand after white space, so that f(A) is no label; letters past J are never labels.

    Raises:
        Dropped: no label A at the start, a label twice, a gap, or text cut off inside a label.
    """
    folded = fold(text)
    found = list(_BRACKET_LABEL.finditer(folded))
    if not found or folded[: found[0].start()].strip() or found[0].group(1) != "A":
        raise Dropped("no-labels")
    if _CUT_OFF.search(folded):
        raise Dropped("cut-off-options")
    for expected, match in zip(LABELS, found, strict=False):
        if match.group(1) != expected:
            raise Dropped("label-gap" if match.group(1) > expected else "label-twice")
    ends = [match.start() for match in found[1:]] + [len(text)]
    return tuple(text[match.end() : end] for match, end in zip(found, ends, strict=True))


def matching_option(text: str, options: tuple[str, ...]) -> str | None:
    """The label of the only option that equals ``text``, or None."""
    wanted = normalise_option(text)
    hits = [LABELS[i] for i, option in enumerate(options) if normalise_option(option) == wanted]
    return hits[0] if len(hits) == 1 else None
