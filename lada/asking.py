"""How a model is asked: its tokenizer from whatever file, its chat template, what ends its responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lada.config import PromptForm
from lada.errors import ModelError
from lada.sentencepiece import convert


@dataclass(frozen=True)
class Asking:
    """How prompts become ids, and what ends a response beside the EOS of config.json.

    Attributes:
        form: None: plain text, with BOS where config.json names one.
        template: the chat template, where ``form`` goes through one.
        specials: what a chat template may name, e.g. ``bos_token``.
        ends: further ids that end a response.
    """

    form: PromptForm | None = None
    template: str | None = None
    specials: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through a chat template."""
        return self.form is not None and self.form.kind == "chat"


PLAIN = Asking()


def open_asking(folder: Path, form: PromptForm | None) -> Asking:
    """What a model's folder says of chats and of ends.

    Raises:
        ModelError: ``form`` asks for a chat template and the folder has none.
    """
    if form is None:
        return PLAIN
    generation = _json(folder / "generation_config.json")
    ends = _ids(generation.get("eos_token_id"))
    stated = _json(folder / "tokenizer_config.json")
    specials = {name: _text(stated[name]) for name in ("bos_token", "eos_token") if stated.get(name)}
    if form.kind == "plain":
        return Asking(form, None, specials, ends)
    template = _template(folder, stated)
    if template is None:
        raise ModelError(
            f"{folder} has no chat template, neither in chat_template.jinja nor in tokenizer_config.json,"
            " and its model is asked in chat form; stage it again, or state prompt: {kind: plain, bos: …}"
        )
    return Asking(form, template, specials, ends)


def open_tokenizer(folder: Path) -> Tokenizer:
    """A model's tokenizer, from tokenizer.json or from a SentencePiece file.

    Raises:
        ModelError: it has neither, or one that cannot be read.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        if "model" not in _json(path):
            raise ModelError(f"{path} holds no tokenizer")
        return Tokenizer.from_file(str(path))
    if (folder / "tokenizer.model").is_file():
        return convert(folder / "tokenizer.model", _added_tokens(folder))
    raise ModelError(f"{folder} has no tokenizer.json and no tokenizer.model")


def end_id(stated: int | list[int] | None, tokenizer: Tokenizer, form: PromptForm | None) -> int:
    """The token that ends a response: the form's end of turn, else the first EOS of config.json.

    Args:
        stated: ``eos_token_id`` of config.json.

    Raises:
        ModelError: there is none.
    """
    if form is not None and form.end_of_turn is not None:
        found = tokenizer.token_to_id(form.end_of_turn)
        if found is None:
            raise ModelError(f"the tokenizer has no token '{form.end_of_turn}', which ends a chat response")
        return int(found)
    ids = _ids(stated)
    if not ids:
        raise ModelError("config.json names no eos_token_id, and no end_of_turn is known")
    return ids[0]


def _template(folder: Path, stated: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = stated.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in template}
        template = named.get("default")
    return template


def _added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens beside the SentencePiece file's: id -> (text, whether it is special)."""
    stated = _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    found = {int(i): (_text(one), bool(one.get("special", False))) for i, one in stated.items()}
    for text, i in _json(folder / "added_tokens.json").items():
        found.setdefault(int(i), (text, True))
    return found


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
