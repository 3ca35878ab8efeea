"""What may stand in a file that another party wrote: checks before anything is believed.

Nothing is ever unpickled. JSON lines are parsed into records with caps; safetensors are opened from bytes and
their keys, shapes, dtypes and values are checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from lada.config import ExchangeOptions
from lada.errors import DataError, ExchangeError
from lada.records import Finite, Record, explain, parse_jsonl

R = TypeVar("R", bound=Record)
Shape = tuple[int, ...]
Schema = Mapping[str, tuple[str, Shape]]
"""Tensor name -> (safetensors dtype such as ``F32``, shape)."""

_METRICS = TypeAdapter(dict[str, Annotated[Finite, Field(strict=True)]])
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}
_HEADER_CAP = 16 * 2**20
LOGITS: Mapping[str, tuple[str, int, float, float]] = {
    "letters": ("U8", 1, 0, 4),
    "ce": ("F32", 1, 0, 1e6),
    "logits": ("F16", 2, -65_504, 0),
    "ids": ("I32", 2, 0, 2**24),
}
"""Everything that a message of the kind ``logits`` may hold: dtype, dimensions, least and largest value.

``letters``: A to D as 0 to 3, 4 for none. ``ce``: cross-entropies. ``logits``: relative to the largest of
their row. ``ids``: tokens. The first dimension is texts, that of ``logits`` and ``ids`` rows of texts.
"""


@dataclass(frozen=True)
class Origin:
    """Who wrote a file, for error messages."""

    party: str
    stage: str
    file: str

    def error(self, check: str, detail: str) -> ExchangeError:
        """An ExchangeError about this file."""
        return ExchangeError(check, detail, party=self.party, stage=self.stage, file=self.file)


def check_records(
    kind: type[R],
    content: bytes,
    origin: Origin,
    *,
    limits: ExchangeOptions,
    legal_ids: Collection[str] | None = None,
) -> list[R]:
    """Parse JSON lines that another party wrote.

    Args:
        legal_ids: ids of the public set; a record with another id is refused.

    Raises:
        ExchangeError: checks encoding, line-size, item-count, schema, public-ids, once.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise origin.error("encoding", f"not UTF-8: {error}") from error
    lines = text.split("\n")
    longest = max(len(line) for line in lines)
    if longest > limits.max_line_bytes:
        raise origin.error(
            "line-size", f"a line of {longest} characters; at most {limits.max_line_bytes} are legal"
        )
    if len(lines) - 1 > limits.max_items:
        raise origin.error("item-count", f"{len(lines) - 1} lines; at most {limits.max_items} are legal")
    if text and not text.endswith("\n"):
        raise origin.error("schema", "the last line does not end: the file was cut off")
    try:
        records = parse_jsonl(kind, text, source=origin.file)
    except DataError as error:
        raise origin.error("schema", str(error)) from error
    _check_ids(records, origin, legal_ids)
    return records


def _check_ids(records: list[R], origin: Origin, legal_ids: Collection[str] | None) -> None:
    seen: set[tuple[str, str, int]] = set()
    for record in records:
        name = getattr(record, "id", None)
        if name is None:
            continue
        if legal_ids is not None and name not in legal_ids:
            raise origin.error("public-ids", f"id '{name}' is not in the public set")
        key = (name, getattr(record, "partner", ""), getattr(record, "place", 0))
        if key in seen:
            raise origin.error("once", f"id '{name}' stands twice")
        seen.add(key)


def check_metrics(content: bytes, origin: Origin) -> dict[str, float]:
    """Parse a JSON object of finite numbers that another party wrote.

    Raises:
        ExchangeError: check ``schema``.
    """
    try:
        return _METRICS.validate_json(content)
    except ValueError as error:
        raise origin.error("schema", explain(error)) from error


def tensor_schema(content: bytes, origin: Origin) -> dict[str, tuple[str, Shape]]:
    """Names, dtypes and shapes of a safetensors file, from its header alone.

    Raises:
        ExchangeError: check ``safetensors`` when it is not a well-formed safetensors file.
    """
    if len(content) < 8:
        raise origin.error("safetensors", "shorter than a header")
    size = int.from_bytes(content[:8], "little")
    if size > _HEADER_CAP or 8 + size > len(content):
        raise origin.error("safetensors", f"header of {size} bytes does not fit a file of {len(content)}")
    try:
        header: Any = json.loads(content[8 : 8 + size])
        return {
            str(name): (str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise origin.error("safetensors", f"header is not what safetensors writes: {error}") from error


def check_tensors(content: bytes, origin: Origin, *, expected: Schema | None = None) -> list[str]:
    """Check a safetensors file: form, expected keys, dtypes and shapes, and that every value is finite.

    Returns:
        The names of the tensors, sorted.

    Raises:
        ExchangeError: checks ``safetensors``, ``tensor-keys``, ``tensor-schema``, ``finite``.
    """
    schema = tensor_schema(content, origin)
    if expected is not None:
        for name in sorted(schema.keys() ^ expected.keys()):
            side = "unexpected" if name in schema else "missing"
            raise origin.error("tensor-keys", f"tensor '{name}' is {side}")
        for name, found in sorted(schema.items()):
            if found != tuple(expected[name]):
                raise origin.error("tensor-schema", f"tensor '{name}' is {found}, expected {expected[name]}")
    for name, (dtype, shape) in schema.items():
        if dtype not in _ITEM_BYTES or math.prod(shape) * _ITEM_BYTES[dtype] > len(content):
            raise origin.error("tensor-schema", f"tensor '{name}': dtype {dtype}, shape {shape} is not legal")
    try:
        tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise origin.error("safetensors", str(error)) from error
    for name, entry in tensors:
        if not _is_finite(bytes(entry["data"]), entry["dtype"]):
            raise origin.error("finite", f"tensor '{name}' holds NaN or infinity")
    return sorted(schema)


def check_logits(
    content: bytes, origin: Origin, *, limits: ExchangeOptions, num_public: int
) -> dict[str, NDArray[np.generic]]:
    """Parse numbers on public texts that another party wrote.

    Args:
        num_public: size of the public set; more texts are refused.

    Returns:
        Name (a key of `LOGITS`) -> array.

    Raises:
        ExchangeError: as `check_tensors`; and checks ``metadata``, ``bounds``, ``item-count``.
    """
    schema = tensor_schema(content, origin)
    for name, (dtype, shape) in schema.items():
        legal = LOGITS.get(name)
        if legal is None:
            raise origin.error("tensor-keys", f"tensor '{name}' is unexpected; legal: {', '.join(LOGITS)}")
        if (dtype, len(shape)) != legal[:2]:
            detail = f"tensor '{name}' is {dtype}, {len(shape)}-dimensional; expected {legal[0]}, {legal[1]}"
            raise origin.error("tensor-schema", detail)
    check_tensors(content, origin)
    if b'"__metadata__"' in content[8 : 8 + int.from_bytes(content[:8], "little")]:
        raise origin.error("metadata", "numbers on public texts come without any text")
    arrays = safetensors.numpy.load(content)
    for name, array in arrays.items():
        least, largest = LOGITS[name][2:]
        if array.size and not (array.min() >= least and array.max() <= largest):
            raise origin.error("bounds", f"tensor '{name}' has a value outside {least} to {largest}")
    counts = {len(arrays[name]) for name in ("letters", "ce") if name in arrays}
    if len(counts) != 1 or max(counts) > min(num_public, limits.max_items):
        raise origin.error("item-count", f"{sorted(counts)} texts; the public set has {num_public}")
    if "ids" in arrays and ("logits" not in arrays or arrays["ids"].shape != arrays["logits"].shape):
        raise origin.error("tensor-schema", "'ids' and 'logits' differ in shape")
    return arrays


def _is_finite(data: bytes, dtype: str) -> bool:
    if dtype == "BF16":
        raw = np.frombuffer(data, dtype=np.uint16)
        return not bool(np.any((raw & 0x7F80) == 0x7F80))
    if dtype in ("F16", "F32", "F64"):
        values = np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
        return bool(np.isfinite(values).all())
    return True
