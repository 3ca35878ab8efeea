"""The four tokenizers of the lab tier: they read any text, and they really cut it differently."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from tokenizers import Tokenizer

from lada.data import lab
from lada.lab.tokenizing import CUTS, EOS, EOS_ID, PAD, PAD_ID, train_tokenizer
from lada.prompts import prompt, solution


@cache
def tokenizer(family: str) -> Tokenizer:
    return train_tokenizer(family)


@cache
def texts() -> tuple[str, ...]:
    items = [
        item
        for dataset in lab.DATASETS
        for item in lab.generate(dataset, dict.fromkeys(lab.makers(dataset), 1.0), 100, 31)
    ]
    return tuple(f"{prompt(item)} {solution(item)}" for item in items)


def cuts(family: str, text: str) -> set[int]:
    """Positions in the text at which a token ends."""
    return {end for _, end in tokenizer(family).encode(text).offsets}


@pytest.mark.parametrize("family", CUTS)
@pytest.mark.parametrize(
    "text", ["", "naïve café — 你好 🙂", "x²≥∑\t{a}\r\n", "Unlike  two   spaces ", "\x00\x7f", "עברית ▁Ġ"]
)
def test_any_unicode_text_comes_back(family: str, text: str) -> None:
    ids = tokenizer(family).encode(text).ids
    assert tokenizer(family).decode(ids) == text


@pytest.mark.parametrize("family", CUTS)
def test_lab_text_comes_back_and_special_tokens_stand_first(family: str) -> None:
    assert tokenizer(family).token_to_id(PAD) == PAD_ID
    assert tokenizer(family).token_to_id(EOS) == EOS_ID
    for text in texts():
        ids = tokenizer(family).encode(text).ids
        assert tokenizer(family).decode(ids) == text
        assert PAD_ID not in ids
        assert EOS_ID not in ids


def test_families_cut_the_same_200_texts_differently() -> None:
    assert len(texts()) == 200
    for one, two in itertools.combinations(CUTS, 2):
        shares = []
        for text in texts():
            a, b = cuts(one, text), cuts(two, text)
            shares.append(len(a & b) / len(a | b))
        assert sum(shares) / len(shares) < 0.93, (one, two)
        assert sum(share == 1.0 for share in shares) < 50, (one, two)


def test_mean_lengths_differ() -> None:
    means = sorted(sum(len(tokenizer(family).encode(text).ids) for text in texts()) / 200 for family in CUTS)
    assert means[1] > 1.05 * means[0]
    assert means[-1] > 1.2 * means[0]


def test_training_is_repeatable() -> None:
    assert train_tokenizer("qwen").to_str() == tokenizer("qwen").to_str()
