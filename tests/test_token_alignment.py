"""Tokens as text, tokens to tokens, rows to rows; the hand-computed cases of the baselines page."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lada import token_alignment
from lada.errors import ModelError
from lada.lab import WEIGHTS
from lada.token_alignment import (
    NOTHING,
    Aligner,
    VocabularyMap,
    align_rows,
    dtw_alignment,
    edit_distance,
    nearest,
    offset_alignment,
)
from lada.vocabulary import Vocabulary, open_vocabulary
from tests.smallest_models import _tokenizer as characters

FAMILIES = {"qwen": "qwen3-0.6b", "llama": "meta-llama-3-8b", "gemma": "gemma-2-2b"}
WORDS = st.lists(st.sampled_from(["a", "ab", "abc", "b", "bc", "xyz", ""]), max_size=4)


@cache
def lab(family: str) -> Vocabulary:
    return open_vocabulary(WEIGHTS / FAMILIES[family])


def sentencepiece(*, dummy_prefix: bool = False) -> Vocabulary:
    """A small SentencePiece-like BPE: "▁" for spaces, one token a byte for what it cannot spell."""
    pieces = ["<pad>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeThis0123456789"]
    merges = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "T"), ("▁T", "h"), ("1", "2")]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if dummy_prefix else replace
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    return Vocabulary(tokenizer, 1)


def every_kind() -> list[Vocabulary]:
    plain = characters()
    return [
        *map(lab, FAMILIES),
        sentencepiece(),
        sentencepiece(dummy_prefix=True),
        Vocabulary(plain, plain.token_to_id("<eos>")),
    ]


# -- tokens as text


def test_the_space_marker_is_detected() -> None:
    assert [one.marker for one in every_kind()] == ["Ġ", "Ġ", "Ġ", "▁", "▁", ""]


@pytest.mark.parametrize("place", range(5))
@given(text=st.text(max_size=40))
def test_tokens_stand_for_the_bytes_of_the_text(place: int, text: str) -> None:
    vocabulary = every_kind_cached()[place]
    cut = vocabulary.cut(text.replace("▁", ""))
    raw = text.replace("▁", "").encode()
    contents = [vocabulary.content(token) or b"" for token in cut.ids]
    joined = b"".join(contents)
    assert joined in (raw, b" " + raw)
    before = len(joined) - len(raw)
    for place_in, end in enumerate(cut.ends):
        assert end == max(0, len(b"".join(contents[: place_in + 1])) - before)
    assert not cut.ids or cut.ends[-1] == len(raw)


@cache
def every_kind_cached() -> tuple[Vocabulary, ...]:
    return tuple(every_kind())


def test_bytes_of_byte_level_and_byte_fallback_tokens() -> None:
    """Pitfall 5: both spell "é" in bytes, so it is the same text to both."""
    for vocabulary in (lab("qwen"), sentencepiece()):
        cut = vocabulary.cut("é")
        assert b"".join(vocabulary.content(token) or b"" for token in cut.ids) == "é".encode()
        assert all(len(vocabulary.text(token) or "") == 1 for token in cut.ids)
    first = lab("qwen").cut("é").ids[0]
    assert VocabularyMap(lab("qwen"), sentencepiece())(first) == sentencepiece().cut("é").ids[0]


def test_special_tokens_and_padded_embedding_rows_stand_for_nothing() -> None:
    """Pitfall 7: neither an error nor a text."""
    vocabulary = lab("gemma")
    assert vocabulary.content(vocabulary.eos_id) is None
    assert vocabulary.text(0) is None
    assert vocabulary.text(vocabulary.size + 5) is None
    mapping = VocabularyMap(vocabulary, lab("qwen"))
    assert mapping(0) == mapping(vocabulary.size + 5) == NOTHING
    assert mapping(vocabulary.eos_id) == lab("qwen").eos_id


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = Tokenizer.from_str(characters().to_str())
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    vocabulary = Vocabulary(tokenizer, 1)
    assert vocabulary.content(tokenizer.token_to_id("<think>")) == b"<think>"


def test_a_tokenizer_that_rewrites_text_is_believed_about_places() -> None:
    tokenizer = Tokenizer.from_str(characters().to_str())
    tokenizer.normalizer = normalizers.NFKD()
    cut = Vocabulary(tokenizer, 1).cut("a ﬁ b")  # the ligature becomes two letters
    assert cut.ends == (1, 2, 5, 5, 6, 7)


def test_tokenizers_are_told_apart_by_what_they_do(tmp_path: Path) -> None:
    folder = WEIGHTS / "qwen3-0.6b"
    assert open_vocabulary(folder).digest == open_vocabulary(WEIGHTS / "qwen3-32b").digest
    assert len({lab(family).digest for family in FAMILIES}) == 3
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_vocabulary(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert open_vocabulary(tmp_path).eos_id == 7


def test_letters_are_single_tokens_with_or_without_their_space() -> None:
    for family in FAMILIES:
        head, letters = lab(family).option_tokens(" ", "ABCD")
        assert head == ()
        assert [lab(family).text(token) for token in letters] == [" A", " B", " C", " D"]
    plain = every_kind_cached()[5]
    head, letters = plain.option_tokens(" ", "ABCD")
    assert [plain.text(token) for token in (*head, *letters)] == [" ", "A", "B", "C", "D"]
    head, letters = sentencepiece().option_tokens(" ", "ABCD")
    assert [sentencepiece().text(token) for token in (*head, *letters)] == [" ", "A", "B", "C", "D"]
    wordless = Tokenizer(models.WordLevel({"<eos>": 0, "A": 1}, unk_token="<eos>"))
    with pytest.raises(ModelError, match="no single token for each of A, B, C, D"):
        Vocabulary(wordless, 0).option_tokens(" ", "ABCD")


# -- tokens to tokens


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_by_definition(a: str, b: str) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a, b) == slow(len(a), len(b))


@pytest.mark.parametrize("text", ["utilize", " zzzzzzzzzzzz", "12345", "é", "\udcff", " Q"])
def test_nearest_token_is_the_first_at_the_least_distance(text: str) -> None:
    vocabulary = lab("llama")
    every = [(vocabulary.text(token), token) for token in range(vocabulary.size)]
    distances = [(edit_distance(text, other), token) for other, token in every if other]
    assert nearest(text, vocabulary) == min(distances)[1]


def test_lengths_prune_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 8: with a near token found, other lengths are never compared."""
    lengths: list[int] = []
    original = token_alignment._edit_distances

    def spy(text: str, codes):  # type: ignore[no-untyped-def]
        lengths.append(len(codes))
        return original(text, codes)

    monkeypatch.setattr(token_alignment, "_edit_distances", spy)
    near = " answeq"
    assert lab("llama").text(nearest(near, lab("llama"))) == " answer"
    assert set(lengths) <= {6, 7, 8}
    assert max(lab("llama").by_length) > 8


def test_a_map_is_made_lazily_once_and_remembered() -> None:
    mapping = VocabularyMap(lab("qwen"), lab("llama"))
    token = lab("qwen").by_text[" answer"]
    assert mapping.known == {}
    assert lab("llama").text(mapping(token)) == " answer"
    assert set(mapping.known) == {token}
    mapping.known[token] = 99
    assert mapping(token) == 99


def test_a_token_called_like_a_python_word_is_a_token() -> None:
    """Pitfall 6: in the public code the token "total" maps to an integer count."""
    tokenizer = Tokenizer(
        models.WordLevel({"<eos>": 0, "total": 1, "totals": 2, " ": 3, "a": 4}, unk_token="<eos>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    vocabulary = Vocabulary(tokenizer, 0)
    other = Tokenizer(models.WordLevel({"<eos>": 0, "b": 1, "total": 2, " ": 3}, unk_token="<eos>"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    mapping = VocabularyMap(vocabulary, Vocabulary(other, 0))
    assert [mapping(token) for token in (0, 1, 2)] == [0, 2, 2]


# -- rows to rows


@pytest.mark.parametrize(
    ("blend", "base", "matched", "cost"),
    [
        (["we", "util", "ize", "it"], ["we", "utilize", "it"], [[0], [1], [2, 3]], 5),
        (["we", "utilize", "it"], ["we", "util", "ize", "it"], [[0], [1], [2], [2]], 5),
        (["12", "+", "34"], ["1", "2", "+", "3", "4"], [[0], [0], [1], [1], [2]], 4),
    ],
)
def test_oracles_2_and_3_of_time_warping(
    blend: list[str], base: list[str], matched: list[list[int]], cost: int
) -> None:
    assert dtw_alignment(blend, base) == (matched, cost)


@pytest.mark.parametrize(
    ("blend", "base", "matched"),
    [
        (["a", "a"], ["a", "a"], [[0], [1]]),  # all three ways cost 0: diagonal
        (["b", "a", "b"], ["a", "b", "a"], [[0], [0], [1, 2]]),  # blending before base, from (2, 2)
    ],
)
def test_ties_on_the_way_back(blend: list[str], base: list[str], matched: list[list[int]]) -> None:
    assert dtw_alignment(blend, base)[0] == matched


def test_time_warping_breaks_on_the_textbook_case_and_offsets_do_not() -> None:
    """Pitfall 2: "the" is paired with {ize, the}, so both rows fall back; by offsets no base row is lost."""
    blend, base = ["we", "util", "ize", "the", "dynamic"], ["we", "utilize", "the", "dynamic"]
    matched, _ = dtw_alignment(blend, base)
    assert matched == [[0], [1], [2, 3], [4]]
    assert offsets(blend, base) == [0, 2, 3, 4]


def ends(tokens: list[str]) -> list[int]:
    return list(itertools.accumulate(len(token) for token in tokens))


def offsets(blend: list[str], base: list[str]) -> list[int]:
    return offset_alignment(ends(blend), ends(base))


def test_oracles_2_and_3_of_offsets() -> None:
    assert offsets(["we", "util", "ize", "it"], ["we", "utilize", "it"]) == [0, 2, 3]
    assert offsets(["12", "+", "34"], ["1", "2", "+", "3", "4"]) == [NOTHING, 0, 1, NOTHING, 2]


@given(WORDS, WORDS)
def test_no_warping_is_cheaper(blend: list[str], base: list[str]) -> None:
    """Every monotone path over a small grid, one by one."""
    if not blend or not base:
        assert dtw_alignment(blend, base) == ([[] for _ in base], 0)
        return

    def paths(j: int, i: int):  # type: ignore[no-untyped-def]
        if (j, i) == (len(blend) - 1, len(base) - 1):
            yield [(j, i)]
        for step in ((j + 1, i + 1), (j + 1, i), (j, i + 1)):
            if step[0] < len(blend) and step[1] < len(base):
                yield from ([(j, i), *rest] for rest in paths(*step))

    costs = [sum(edit_distance(blend[j], base[i]) for j, i in path) for path in paths(0, 0)]
    matched, cost = dtw_alignment(blend, base)
    assert cost == min(costs)
    pairs = [(j, i) for i, places in enumerate(matched) for j in places]
    assert sum(edit_distance(blend[j], base[i]) for j, i in pairs) == cost


def test_oracle_4_same_tokenizer_same_rows() -> None:
    cut = lab("qwen").cut(" 12 + 34 = 46 B.\nThe answer is B")
    again = open_vocabulary(WEIGHTS / "qwen3-4b")
    for kind in ("offset", "dtw"):
        rows = align_rows(
            again.cut(" 12 + 34 = 46 B.\nThe answer is B"), cut, kind, VocabularyMap(again, lab("qwen"))
        )
        assert rows == list(range(len(cut.ids) + 1))


@pytest.mark.parametrize("blend", FAMILIES)
@pytest.mark.parametrize("base", FAMILIES)
@given(text=st.text("abThe 1+2=é🙂\n", max_size=30))
def test_offset_rows_stand_after_the_same_text(blend: str, base: str, text: str) -> None:
    one, two = lab(blend).cut(text), lab(base).cut(text)
    rows = align_rows(one, two, "offset", VocabularyMap(lab(blend), lab(base)))
    assert rows[0] == 0 and rows[-1] == len(one.ids)
    for row, other in enumerate(rows):
        if other != NOTHING:
            before = b"".join(lab(base).content(token) or b"" for token in two.ids[:row])
            assert before == b"".join(lab(blend).content(token) or b"" for token in one.ids[:other])


def test_a_leading_space_of_the_tokenizers_own_is_no_place_in_the_text() -> None:
    """What stands after it is the text's beginning; the row that predicts it has no partner elsewhere."""
    spaced, plain = sentencepiece(dummy_prefix=True), sentencepiece()
    one, two = spaced.cut(" T"), plain.cut(" T")
    assert (one.ends, two.ends) == ((0, 2), (2,))
    assert align_rows(one, two, "offset", VocabularyMap(spaced, plain)) == [1, 2]
    assert align_rows(two, one, "offset", VocabularyMap(plain, spaced)) == [NOTHING, 0, 1]


def test_warped_rows_need_one_partner_of_the_same_text() -> None:
    text = "util 12 it"
    blend, base = lab("llama"), lab("gemma")
    rows = align_rows(blend.cut(text), base.cut(text), "dtw", VocabularyMap(blend, base))
    kept = [(row - 1, other - 1) for row, other in enumerate(rows) if row and other != NOTHING]
    assert kept
    for i, j in kept:
        assert (
            blend.cut(text).texts[j] == base.cut(text).texts[i]
            or VocabularyMap(blend, base)(blend.cut(text).ids[j]) == base.cut(text).ids[i]
        )
    assert NOTHING in rows, "digits are cut differently"


def test_alignments_are_found_once_and_survive_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 10: they depend on texts and tokenizers alone."""
    calls: list[str] = []
    original = token_alignment.align_rows

    def spy(blend, base, kind, mapping):  # type: ignore[no-untyped-def]
        calls.append(kind)
        return original(blend, base, kind, mapping)

    monkeypatch.setattr(token_alignment, "align_rows", spy)
    first = Aligner(lab("llama"), "dtw")
    token = lab("gemma").by_text[" answer"]
    found = [first.rows(lab("gemma"), text) for text in (" 12 + 3", " 4", " 12 + 3")]
    mapped = first.mapping(lab("gemma"))(token)
    assert calls == ["dtw", "dtw"] and found[0] == found[2]
    again = Aligner(lab("llama"), "dtw", json.loads(json.dumps(first.state())))
    assert again.rows(lab("gemma"), " 12 + 3") == found[0]
    assert again.mapping(lab("gemma")).known[token] == mapped
    assert len(calls) == 2
    assert Aligner(lab("llama"), "offset", first.state()).rows(lab("gemma"), " 4") and len(calls) == 3
