"""The tokens of a tokenizer as the text that they stand for, whatever kind of tokenizer it is.

Byte-level BPE, SentencePiece with byte fallback and plain words spell spaces and bytes differently; two of
them can be compared only by what their tokens stand for. The space marker is found by encoding " a", not by a
table of tokenizer classes (baselines, section 4d5).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lada.asking import end_id, open_tokenizer
from lada.config import PromptForm
from lada.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE, _BYTE_LEVEL = "▁", "Ġ"


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: visible Latin-1 characters are themselves, the rest follow 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


_ALPHABET = _byte_alphabet()


@dataclass(frozen=True)
class Cut:
    """A text as a tokenizer cuts it.

    Attributes:
        ids: tokens [n], without end-of-sequence.
        ends: where each token ends in the text, in bytes [n]; equal ends are equal prefixes.
        texts: what each token stands for [n], without spaces.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    texts: tuple[str, ...]


class Vocabulary:
    """The tokens of a tokenizer as the text that they stand for.

    Args:
        tokenizer: byte-level BPE, SentencePiece with byte fallback, or plain words.
        eos_id: its end-of-sequence token, which maps to that of any other vocabulary.

    Attributes:
        size: ids from here on are padded embedding rows.
        marker: what stands for a space: "Ġ" (byte-level), "▁" (SentencePiece) or "" (a space is a space).
        digest: equal for tokenizers that cut every text alike.
    """

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self._tokenizer, self.eos_id = tokenizer, eos_id
        self._tokens: dict[int, str] = {i: token for token, i in tokenizer.get_vocab().items()}
        self.size = max(self._tokens) + 1
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special} | {eos_id}
        self._literal = set(added) - self._special
        probe = "".join(tokenizer.encode(" a", add_special_tokens=False).tokens)
        found = [marker for marker in (_BYTE_LEVEL, _SENTENCEPIECE) if marker in probe]
        self.marker = found[0] if found else ""
        self.digest = hashlib.sha256(f"{eos_id} {tokenizer.to_str()}".encode()).hexdigest()[:16]

    def content(self, token: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens and padded embedding rows."""
        piece = self._tokens.get(token)
        if piece is None or token in self._special:
            return None
        if token in self._literal:
            return piece.encode()
        if self.marker == _BYTE_LEVEL and all(char in _ALPHABET for char in piece):
            return bytes(_ALPHABET[char] for char in piece)
        if self.marker == _SENTENCEPIECE:
            byte = _BYTE_TOKEN.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_SENTENCEPIECE, " ").encode()
        return piece.encode()

    def text(self, token: int) -> str | None:
        """A token's bytes as text, one character for a byte that is none by itself; None as `content`."""
        found = self.content(token)
        return None if found is None else found.decode("utf-8", errors="surrogateescape")

    @cached_property
    def by_text(self) -> dict[str, int]:
        """Text -> the first token that stands for it."""
        found: dict[str, int] = {}
        for token in sorted(self._tokens):
            text = self.text(token)
            if text:
                found.setdefault(text, token)
        return found

    @cached_property
    def by_length(self) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Length -> (tokens [N] in rising order, code points [length, N] of their texts)."""
        grouped: dict[int, list[str]] = {}
        for text in self.by_text:
            grouped.setdefault(len(text), []).append(text)
        return {
            length: (
                np.array([self.by_text[text] for text in texts], dtype=np.int64),
                np.array([[ord(char) for char in text] for text in texts], dtype=np.int32).T,
            )
            for length, texts in grouped.items()
        }

    def cut(self, text: str) -> Cut:
        """Tokens of a text with the places where they end."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids = tuple(encoded.ids)
        contents = [self.content(token) for token in ids]
        joined = b"".join(one or b"" for one in contents)
        raw = text.encode()
        if joined == raw or joined == b" " + raw:  # SentencePiece may put a space of its own before a text
            lengths = np.cumsum([len(one or b"") for one in contents], dtype=np.int64) - (
                len(joined) - len(raw)
            )
            ends = tuple(int(end) for end in np.maximum(lengths, 0))
        else:  # the tokenizer rewrites the text (e.g. Unicode normalisation): only its own word is left
            ends = tuple(len(text[:end].encode()) for _, end in encoded.offsets)
        return Cut(ids, ends, tuple((self.text(token) or "").replace(" ", "") for token in ids))

    def option_tokens(self, before: str, options: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens between a prompt and an option, and the one token of each option.

        With ``before`` (a space) as a part of the option's token where the tokenizer has one such token for
        each option, else as a token of its own, else left out.

        Raises:
            ModelError: when no spelling gives distinct single tokens.
        """
        for space in (before, ""):
            cuts = [
                self._tokenizer.encode(space + option, add_special_tokens=False).ids for option in options
            ]
            heads, last = {tuple(ids[:-1]) for ids in cuts}, [ids[-1] for ids in cuts if ids]
            unknown = any((self.text(token) or "").strip() not in options for token in last)
            if len(heads) == 1 and len(set(last)) == len(options) and not unknown:
                return heads.pop(), tuple(last)
        raise ModelError(f"the tokenizer has no single token for each of {', '.join(options)}")


def open_vocabulary(folder: Path, form: PromptForm | None = None) -> Vocabulary:
    """The vocabulary of a model folder (its tokenizer and config.json); weights are not read.

    Args:
        form: how the model is asked, which decides what ends its responses.

    Raises:
        ModelError: when one of the files is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: every party needs the tokenizers of all models")
    tokenizer = open_tokenizer(folder)
    eos = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    return Vocabulary(tokenizer, end_id(eos, tokenizer, form))
