"""A SentencePiece BPE file (tokenizer.model) as a fast tokenizer, without its library.

InternLM3 is published with this file alone, read by code of its own that is not run here. Every stretch of
text between special tokens is encoded for itself, with the file's own normalisation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from lada.errors import ModelError

SPACE = "▁"
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass
class SpmFile:
    """What a file holds.

    Attributes:
        pieces: (text, score, kind) by id.
        algorithm: 2 is BPE.
        byte_fallback: unknown characters become bytes.
        charsmap: compiled normalisation; empty: none.
        dummy_prefix: a space is put before every text.
        squeeze: spaces at the ends and repeated ones are dropped.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    algorithm: int = 1
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    squeeze: bool = True


def convert(path: Path, added: Mapping[int, tuple[str, bool]]) -> Tokenizer:
    """The fast tokenizer of a file.

    Args:
        added: tokens that the file does not hold, or holds by another name: id -> (text, is it special).

    Raises:
        ModelError: it cannot be read, is no BPE, or ``added`` does not follow its pieces.
    """
    found = read(path)
    if found.algorithm != _BPE:
        raise ModelError(f"{path} is no BPE model (algorithm {found.algorithm}), and only those are read")
    if any(kind == _USER and SPACE in text for text, _, kind in found.pieces):
        raise ModelError(f"{path} has user-defined pieces with spaces, which are not read here")
    renamed = {i: text for i, (text, _) in added.items() if i < len(found.pieces)}
    vocab = {renamed.get(i, text): i for i, (text, _, _) in enumerate(found.pieces)}
    scores = {text: score for text, score, kind in found.pieces if kind == _NORMAL}
    unknown = next((text for text, _, kind in found.pieces if kind == _UNKNOWN), None)
    model = BPE(vocab, _merges(scores), unk_token=unknown, fuse_unk=True, byte_fallback=found.byte_fallback)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(found)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = {i: text for i, (text, _, kind) in enumerate(found.pieces) if kind in (_CONTROL, _UNKNOWN)}
    special |= {i: text for i, (text, is_special) in added.items() if is_special}
    plain = {i: text for i, (text, _, kind) in enumerate(found.pieces) if kind == _USER}
    plain |= {i: text for i, (text, is_special) in added.items() if not is_special}
    for i in sorted(special | plain):
        token = AddedToken(special.get(i, plain.get(i, "")), normalized=False, special=i in special)
        (tokenizer.add_special_tokens if i in special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != i:
            raise ModelError(f"{path}: token {i} '{token.content}' does not follow the file's pieces")
    return tokenizer


def read(path: Path) -> SpmFile:
    """What a SentencePiece file holds.

    Raises:
        ModelError: it is no such file.
    """
    found = SpmFile()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                found.pieces.append(_piece(_inner(value)))
            elif number == 2:
                trainer = dict(_fields(_inner(value)))
                found.algorithm = int(trainer.get(3, 1))
                found.byte_fallback = bool(trainer.get(35, 0))
            elif number == 3:
                norm = dict(_fields(_inner(value)))
                found.charsmap = _inner(norm.get(2, b""))
                found.dummy_prefix, found.squeeze = bool(norm.get(3, 1)), bool(norm.get(4, 1))
    except (OSError, IndexError, struct.error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no SentencePiece file: {error}") from error
    if not found.pieces:
        raise ModelError(f"{path} is no SentencePiece file: it has no pieces")
    return found


def _piece(content: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(content))
    return _inner(fields[1]).decode(), float(fields.get(2, 0.0)), int(fields.get(3, _NORMAL))


def _inner(value: int | float | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a record should be")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) of each field of a protocol-buffer record."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, value
        elif kind == _BYTES:
            size, place = _varint(content, place)
            if place + size > len(content):
                raise ValueError("it is cut off")
            yield number, content[place : place + size]
            place += size
        elif kind in (_FOUR, _EIGHT):
            form, size = ("<f", 4) if kind == _FOUR else ("<d", 8)
            yield number, struct.unpack_from(form, content, place)[0]
            place += size
        else:
            raise ValueError(f"field {number} has the unknown kind {kind}")


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that are pieces, the ones that SentencePiece joins first before the others."""
    found = [
        (-score, left, right)
        for text, score in scores.items()
        for place in range(1, len(text))
        if (left := text[:place]) in scores and (right := text[place:]) in scores
    ]
    found.sort(key=lambda one: (one[0], len(one[1]), len(one[2])))
    return [(left, right) for _, left, right in found]


def _normalizer(found: SpmFile) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if found.charsmap:
        steps.append(normalizers.Precompiled(found.charsmap))
    if found.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if found.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
