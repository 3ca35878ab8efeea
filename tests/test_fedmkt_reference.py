"""FedMKT's alignment and selection on 200 texts, three tokenizer families, against a slow and obvious copy.

The copy shares no code with the suite: it spells tokens by the tokenizer's own byte alphabet, searches whole
vocabularies token by token, fills whole tables, and builds dense distributions over the vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from lada.knowledge import Knowledge
from lada.lab import WEIGHTS
from lada.records import Item, read_jsonl
from lada.rundir import RunDir
from lada.selection.min_ce import source_weights
from lada.shared_texts import SharedTexts, TransferOptions
from lada.token_alignment import dtw_alignment
from tests.federation import make
from tests.one_party import party

pytestmark = pytest.mark.slow

PARTIES = {"server": "qwen3-32b", "client-1": "gemma-2-2b", "client-3": "meta-llama-3-8b"}
NUM_TEXTS, TOP = 200, 5


# -- the slow and obvious copy


def alphabet() -> dict[str, int]:
    """Character -> byte, as the byte-level pre-tokenizer writes all characters of two bytes and fewer."""
    writer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {}
    for code in [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4001)]:
        ((written, _),) = writer.pre_tokenize_str(chr(code))
        found.update(zip(written, chr(code).encode(), strict=True))
    return found


ALPHABET = alphabet()


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(WEIGHTS / PARTIES[name] / "tokenizer.json"))


@cache
def spelled(name: str, token: int) -> str:
    piece = tokenizer(name).id_to_token(token)
    if piece in ("<|pad|>", "<|eos|>"):
        return ""
    return bytes(ALPHABET.get(char, ord(char)) for char in piece).decode("utf-8", "surrogateescape")


@cache
def distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@cache
def mapped(source: str, target: str, token: int) -> int | None:
    if token == 1:  # end of sequence, in all three
        return 1
    text = spelled(source, token)
    if not text:
        return None
    best, found = 10**9, None
    for other in range(tokenizer(target).get_vocab_size()):
        word = spelled(target, other)
        if word and abs(len(word) - len(text)) < best and distance(text, word) < best:
            best, found = distance(text, word), other
    return found


def warped(blend: Sequence[str], base: Sequence[str]) -> list[list[int]]:
    table = np.zeros((len(blend), len(base)), dtype=int)
    for j, a in enumerate(blend):
        for i, b in enumerate(base):
            before = [table[y, x] for y, x in ((j - 1, i - 1), (j - 1, i), (j, i - 1)) if y >= 0 and x >= 0]
            table[j, i] = distance(a, b) + (min(before) if before else 0)
    j, i = len(blend) - 1, len(base) - 1
    path = [(j, i)]
    while (j, i) != (0, 0):
        diagonal = table[j - 1, i - 1] if j and i else 10**9
        up = table[j - 1, i] if j else 10**9
        left = table[j, i - 1] if i else 10**9
        if diagonal <= up and diagonal <= left:
            j, i = j - 1, i - 1
        elif up <= left:
            j -= 1
        else:
            i -= 1
        path.append((j, i))
    return [sorted(y for y, x in path if x == place) for place in range(len(base))]


def partner_rows(align: str, source: str, target: str, text: str) -> list[int | None]:
    """Per row of the target the source's row."""
    if source == target:
        return list(range(len(tokenizer(target).encode(text).ids) + 1))
    blend, base = tokenizer(source).encode(text).ids, tokenizer(target).encode(text).ids
    left = [spelled(source, token) for token in blend]
    right = [spelled(target, token) for token in base]
    if align == "offset":
        before = {"".join(left[:j]): j for j in range(len(left) + 1)}
        return [before.get("".join(right[:i])) for i in range(len(right) + 1)]
    left, right = ([word.replace(" ", "") for word in words] for words in (left, right))
    rows: list[int | None] = [0]
    for i, matched in enumerate(warped(left, right)):
        j = matched[0]
        fits = len(matched) == 1 and (left[j] == right[i] or mapped(source, target, blend[j]) == base[i])
        rows.append(j + 1 if fits else None)
    return rows


def dense_rows(align: str, source: str, target: str, known: Knowledge, text: str, first: int) -> np.ndarray:
    """q over the target's whole vocabulary, row by row."""
    size = tokenizer(target).get_vocab_size()
    base = [*tokenizer(target).encode(text).ids, 1]
    dense = np.zeros((len(base), size))
    for row, other in enumerate(partner_rows(align, source, target, text)):
        if other is None:
            if align == "dtw":
                dense[row, base[row]] = 1.0
            continue
        kept: dict[int, float] = {}
        for token, logit in zip(known.ids[first + other], known.logits[first + other], strict=True):  # type: ignore[index]
            there = token if source == target else mapped(source, target, int(token))
            if there is not None and there not in kept:
                kept[int(there)] = float(logit)
        total = sum(np.exp(value) for value in kept.values())
        for there, value in kept.items():
            dense[row, there] = np.exp(value) / total
    return dense


def chosen(rule: str, values: list[float]) -> list[float]:
    """Weights of the sources, the own one first."""
    if rule == "weighted_mean":
        rewards = [np.exp(np.exp(-value)) for value in values]
        return [reward / sum(rewards) for reward in rewards]
    best = min(range(len(values)), key=lambda place: values[place])
    if rule == "paper":
        best = min(range(1, len(values)), key=lambda place: values[place])
        if values[best] >= values[0]:
            return [0.0] * len(values)
    return [float(place == best) for place in range(len(values))]


# -- 200 texts


def random_text(draw: random.Random, item: Item) -> str:
    """A solution, one with slips, or words, digits and signs of all sorts."""
    kind = draw.randrange(3)
    if kind < 2:
        text = f"{item.rationale}\nThe answer is {item.answer}"
        slips = 4 if kind else 0
        for _ in range(slips):
            place = draw.randrange(len(text))
            text = text[:place] + draw.choice("0123456789abc +=🙂é") + text[place + 1 :]
        return text.strip()
    signs = [
        "12",
        "345",
        "utilize",
        " the",
        "  ",
        "\n",
        "你好",
        "é",
        "🙂",
        "x²",
        "(",
        "A)",
        " B.",
        "=",
        "naïve",
    ]
    return "".join(draw.choice(signs) for _ in range(draw.randint(3, 25))).strip() or "A"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    settings = (f"data.num_public={NUM_TEXTS}", "method.mode=seq")
    return make(tmp_path_factory.mktemp("reference"), *settings, scenario="1", method="fedmkt")


@pytest.fixture(scope="module")
def texts(run: RunDir) -> dict[str, str]:
    draw = random.Random(7)
    items = sorted(read_jsonl(Item, run.sealed), key=lambda item: item.id)
    return {item.id: random_text(draw, item) for item in items}


def shared(run: RunDir, name: str, texts: dict[str, str], align: str) -> SharedTexts:
    one = party(run, name)
    options = TransferOptions.model_validate({"mode": "seq", "top_k": TOP, "align": align})
    return SharedTexts(one, one.open_model(), texts, options)


@pytest.fixture(scope="module")
def known(run: RunDir, texts: dict[str, str]) -> dict[str, Knowledge]:
    return {name: shared(run, name, texts, "dtw").known() for name in PARTIES}


@pytest.mark.parametrize("align", ["dtw", "offset"])
def test_targets_equal_the_slow_copy_on_200_texts(
    run: RunDir, texts: dict[str, str], known: dict[str, Knowledge], align: str
) -> None:
    """Every text is one pair at least: each has one party as base, the two others blending into it."""
    assert len(texts) == NUM_TEXTS
    compared: dict[Any, int] = {}
    for turn, base in enumerate(PARTIES):
        sources = {base: known[base]} | {name: one for name, one in known.items() if name != base}
        ours = shared(run, base, texts, align)
        own, *others = (one.ce.astype(np.float64) for one in sources.values())
        for rule in ("greater", "weighted_mean", "paper"):
            weights = source_weights(own, np.stack(others, axis=1), rule)  # type: ignore[arg-type]
            examples = ours.targets(sources, weights)
            places = range(turn, NUM_TEXTS, len(PARTIES))
            for place in places:
                wanted = chosen(rule, [float(one.ce[place]) for one in sources.values()])
                assert weights[place].tolist() == pytest.approx(wanted, abs=1e-12)
                text = f" {list(texts.values())[place]}"
                expected = 0.0
                shares = 0.0
                for weight, (name, one) in zip(wanted, sources.items(), strict=True):
                    if weight == 0:
                        continue
                    dense = dense_rows(align, name, base, one, text, sum(one.lengths[:place]))
                    expected = expected + weight * dense
                    shares = shares + weight * dense.sum(axis=1, keepdims=True)
                soft = examples[place].soft
                assert soft is not None
                found = np.zeros((len(soft.ids), tokenizer(base).get_vocab_size()))
                for row, (ids, probs) in enumerate(zip(soft.ids.tolist(), soft.probs.tolist(), strict=True)):
                    for token, share in zip(ids, probs, strict=True):
                        found[row, token] += share
                if np.any(shares):
                    expected = expected / np.where(shares > 0, shares, 1)
                np.testing.assert_allclose(found, expected, atol=2e-6)
                compared[rule, base] = compared.get((rule, base), 0) + int(np.any(found))
    assert sum(count for (rule, _), count in compared.items() if rule == "greater") == NUM_TEXTS
    assert all(compared["paper", base] > 5 for base in PARTIES if base != "server")


def test_warped_pairs_equal_the_slow_copy_on_200_pairs(texts: dict[str, str]) -> None:
    """Also of two texts that differ, where ties are more frequent than in two cuts of one text."""
    draw, names = random.Random(11), list(PARTIES)
    listed = list(texts.values())
    for place in range(NUM_TEXTS):
        one, other = draw.sample(names, 2)
        second = listed[place] if place % 2 else listed[(place + 7) % NUM_TEXTS]
        blend, base = (
            [spelled(name, token).replace(" ", "") for token in tokenizer(name).encode(text[:60]).ids]
            for name, text in ((one, listed[place]), (other, second))
        )
        assert dtw_alignment(blend, base)[0] == warped(blend, base)


def test_the_three_families_cut_these_texts_differently(texts: dict[str, str]) -> None:
    for one, other in (("server", "client-1"), ("server", "client-3"), ("client-1", "client-3")):
        same = [
            tokenizer(one).encode(text).offsets == tokenizer(other).encode(text).offsets
            for text in texts.values()
        ]
        assert sum(same) < NUM_TEXTS / 4
