"""Where a response's final answer line ends it: what is parsed stays, what comes after is never generated."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from tiny_models import BOS, EOS, PAD, VOCAB, random_ids, tiny_config, word, words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lada import decoding
from lada.answers import answer_line_end, extract_letter, has_marker
from lada.config import GenerationOptions
from lada.generation import Generated, generate
from lada.language_model import LanguageModel
from lada.models import build_network

DATA = Path(__file__).parents[1].parent / "shared" / "data"
OPTIONS = ("v1", "v2", "v3", "v4")
LINES = [
    "The answer is B",
    "So the answer is B.",
    "the answer is: (B) 42 pens",
    "**The answer is B**",
    "12 + 30 = 42, so the answer is (B).",
    "#### The correct answer is B",
]
GOES_ON = [
    "If the answer is B, then 42 is right.",
    "We see whether the answer is B or C",
    "The answer is a number",
    "B",
    "Answer: (B)",
    "",
]


@pytest.mark.parametrize("line", LINES)
def test_final_lines(line: str) -> None:
    text = f"12 and 30.\n{line}\n\nQuestion: how many?\nThe answer is C\n"
    end = answer_line_end(text)
    assert end is not None and text[:end] == f"12 and 30.\n{line}"
    assert extract_letter(text[:end], OPTIONS) == "B"
    assert answer_line_end(f"12 and 30.\n{line}") is None, (
        "it has not ended: the next token may be a part of it"
    )


@pytest.mark.parametrize("line", GOES_ON)
def test_lines_that_are_not_final(line: str) -> None:
    assert answer_line_end(f"12 and 30.\n{line}\nmore\n") is None


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_no_real_rationale_is_parsed_otherwise() -> None:
    """Of AQuA-RAT, MathInstruct and CoT-Collection: the text up to its final line gives the same letter."""
    texts = [
        str(one.get("output") or "") for one in json.loads((DATA / "mathinstruct_sample.json").read_text())
    ]
    for one in json.loads((DATA / "cot_collection_sample.json").read_text()).values():
        texts += [str(one.get("rationale")), f"{one.get('rationale')}\nThe answer is {one.get('target')}"]
    with gzip.open(DATA / "aqua_rat.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts += [f"{one['rationale']}\nThe answer is {one['answer']}" for one in rows]
    cut = 0
    for text in texts:
        end = answer_line_end(f"{text}\n")
        if end is None:
            continue
        if any(has_marker(line) for line in text[end:].splitlines()):
            continue  # it contradicts or repeats itself: the first final line holds
        cut += 1
        assert extract_letter(text[:end], OPTIONS) == extract_letter(text, OPTIONS), text
    assert cut > 1500


# -- in generation

ANSWERS = {40: "\nThe answer is B\n", 41: "\nThe answer is C\n", 42: "if the answer is A, then\n"}


def speaking(words_of: dict[int, str], *, seed: int = 0) -> LanguageModel:
    """A tiny model whose tokens are words with spaces, some of them said often."""
    network = build_network(tiny_config("llama", tie_word_embeddings=False), seed=seed)
    network.lm_head.weight.data[list(words_of)] *= 2.5
    vocabulary = {words_of.get(i, word(i)): i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=word(3)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("t", " t"), decoders.Fuse()])
    tokenizer.add_special_tokens([word(PAD), word(BOS), word(EOS)])
    return LanguageModel(network, tokenizer)


def asked(count: int = 12) -> list[str]:
    import random

    draw = random.Random(0)
    return [words(random_ids(draw, 3, 20)) for _ in range(count)]


def options(**changes: object) -> GenerationOptions:
    return GenerationOptions(
        **({"max_new_tokens": 40, "batch_size": 4, "temperature": 1.0, "top_k": 12} | changes)  # type: ignore[arg-type]
    )


def test_an_answer_line_ends_a_response_and_changes_nothing_before_it() -> None:
    model = speaking(ANSWERS)
    free, ending = generate(model, asked(), options()), generate(model, asked(), options(stop_at_answer=True))
    ended = 0
    for without, found in zip(free, ending, strict=True):
        end = answer_line_end(f"{without.text}\n")
        assert not found.stopped
        if end is None:
            assert replace(found, confidence=0.0) == replace(without, confidence=0.0)
            continue
        ended += 1
        assert found.finished and found.text == without.text[:end].strip()
        assert found.num_tokens < without.num_tokens or without.finished
        assert extract_letter(found.text, OPTIONS) in "BC"
    assert 3 <= ended < 12
    assert sum(one.num_tokens for one in ending) < sum(one.num_tokens for one in free)


def test_a_prompt_with_a_stop_string_ends_with_that_alone() -> None:
    model = speaking(ANSWERS)
    with_stop = {"stops": [" t9"] * 12, "seed": 1}
    assert generate(model, asked(), options(), **with_stop) == generate(  # type: ignore[arg-type]
        model,
        asked(),
        options(stop_at_answer=True),
        **with_stop,  # type: ignore[arg-type]
    )


def test_every_end_ends() -> None:
    plain = speaking({})
    other = speaking({})
    other.end_ids = frozenset({EOS, *range(5, 25)})
    free, ending = generate(plain, asked(), options()), generate(other, asked(), options())
    ended = [one for one in ending if one.finished]
    assert len(ended) > sum(one.finished for one in free)
    for without, found in zip(free, ending, strict=True):
        assert without.text.startswith(found.text)


def test_prompts_are_read_a_limited_number_of_tokens_at_a_time() -> None:
    model = speaking({})
    widths: list[int] = []
    admit = decoding.Decoder.admit

    def spy(self: decoding.Decoder, rows: list[decoding.Row]) -> None:
        widths.append(len(rows) * max(len(row.asked.prompt) for row in rows))
        admit(self, rows)

    def read(limit: int | None) -> list[Generated]:
        widths.clear()
        with mock.patch.object(decoding.Decoder, "admit", spy):
            return generate(model, asked(), options(batch_size=8, temperature=0.0, prompt_tokens=limit))

    together = read(None)
    assert max(widths) > 60
    apart = read(48)
    assert max(widths) <= 48 and len(widths) > 4
    assert [one.text for one in apart] == [one.text for one in together]
    read(1)
    assert len(widths) == 12, "one prompt is always read, however long"
