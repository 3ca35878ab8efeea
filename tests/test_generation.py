from __future__ import annotations

import math
import random
from unittest import mock

import pytest
import torch
from tiny_models import ARCHITECTURES, LORA, VOCAB, random_ids, tiny_model, untangled, words

from lada import decoding
from lada.config import GenerationOptions
from lada.errors import ConfigError
from lada.generation import Generated, generate
from lada.language_model import LanguageModel, state_hash
from lada.row_cache import _SLACK, RowCache

LIMIT = 20


def prompts(count: int = 11, *, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [words(random_ids(draw, 1, 25)) for _ in range(count)]


def options(rows: int = 4, **changes: float) -> GenerationOptions:
    return GenerationOptions(**({"max_new_tokens": LIMIT, "batch_size": rows} | changes))


def alone(model: LanguageModel, prompt: str, limit: int = LIMIT) -> list[int]:
    return untangled(model, model.prompt_ids(prompt), limit)


def ends(answers: list[Generated]) -> set[bool]:
    return {answer.finished for answer in answers}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_whatever_the_batch(architecture: str) -> None:
    # Embeddings of their own: with tied ones a tiny model only repeats its last token.
    model = tiny_model(architecture, tie_word_embeddings=False)
    asked = prompts()
    expected = [alone(model, prompt) for prompt in asked]
    for rows in (1, 4, 16):  # refilled, compacted and all at once
        answers = generate(model, asked, options(rows))
        assert [answer.num_tokens for answer in answers] == [len(tokens) for tokens in expected]
        assert [answer.text for answer in answers] == [model.text(tokens) for tokens in expected]
        assert [answer.finished for answer in answers] == [tokens[-1] == model.eos_id for tokens in expected]


def test_rows_of_the_comparison_end_at_different_times() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    answers = generate(model, prompts(), options())
    assert len({answer.num_tokens for answer in answers}) > 2
    assert ends(answers) == {True, False}


def test_sliding_window_is_narrower_than_what_is_generated() -> None:
    model = tiny_model("gemma2", tie_word_embeddings=False)
    wide = tiny_model("gemma2", tie_word_embeddings=False, sliding_window=200)
    asked = prompts()
    assert [a.text for a in generate(model, asked, options())] != [
        a.text for a in generate(wide, asked, options())
    ]


def test_expected_lengths_change_the_order_alone() -> None:
    model, asked = tiny_model("llama", tie_word_embeddings=False), prompts()
    first = generate(model, asked, options(3))
    second = generate(model, asked, options(3), expected_lengths=[a.num_tokens for a in first])
    assert [a.text for a in first] == [a.text for a in second]
    admitted: list[int] = []
    admit = decoding.Decoder.admit

    def spy(self: decoding.Decoder, rows: list[decoding.Row]) -> None:
        admitted.extend(row.index for row in rows)
        admit(self, rows)

    with mock.patch.object(decoding.Decoder, "admit", spy):
        generate(model, asked, options(3), expected_lengths=list(range(len(asked))))
    assert admitted == list(range(len(asked)))[::-1]


def test_number_of_decoded_rows_is_the_number_of_tokens() -> None:
    """No row is decoded after its end, and no step is made for empty rows."""
    model, asked = tiny_model("llama", tie_word_embeddings=False), prompts()
    decoded: list[int] = []
    extend = model.extend

    def spy(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: RowCache) -> torch.Tensor:
        if ids.shape[1] == 1 and cache.get_seq_length() > 0:
            decoded.append(ids.shape[0])
        return extend(ids, mask, positions, cache)

    with mock.patch.object(model, "extend", spy):
        answers = generate(model, asked, options(4))
    assert sum(decoded) == sum(answer.num_tokens - 1 for answer in answers)
    assert len(decoded) < sum(answer.num_tokens for answer in answers) / 2


def test_confidence_is_the_mean_log_probability() -> None:
    model = tiny_model("gemma2", tie_word_embeddings=False)
    for prompt, answer in zip(prompts(3), generate(model, prompts(3), options(rows=2)), strict=True):
        asked, tokens = model.prompt_ids(prompt), alone(model, prompt)
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([asked + tokens])).logits[0]
        chosen = logits.log_softmax(-1)[len(asked) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])
        assert answer.confidence == pytest.approx(chosen.mean().item(), abs=1e-4)


def test_sampling_depends_on_seed_and_place_not_on_the_batch() -> None:
    model, asked = tiny_model(), prompts()
    warm = {"temperature": 1.0}
    state = torch.get_rng_state()
    first = generate(model, asked, options(4, **warm), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert generate(model, asked, options(7, **warm), seed=3)[0].text == first[0].text
    assert [a.text for a in generate(model, asked, options(7, **warm), seed=3)] == [a.text for a in first]
    assert [a.text for a in generate(model, asked, options(4, **warm), seed=4)] != [a.text for a in first]
    same = generate(model, [asked[0]] * 6, options(4, **warm), seed=3)
    assert len({answer.text for answer in same}) > 1


def test_sampling_follows_the_probabilities() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), -math.inf]]).expand(4000, 3)
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature, share in ((1.0, 3 / 4), (0.5, 9 / 10)):
        tokens = decoding._sample(scores, temperature, draws)[:, 0]
        counts = torch.bincount(tokens, minlength=3) / 4000
        assert counts[1].item() == pytest.approx(share, abs=0.03)
        assert counts[2] == 0
    edges = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)
    assert decoding._sample(scores[:2], 1.0, edges)[:, 0].tolist() == [0, 1]


def test_low_temperature_is_nearly_greedy() -> None:
    model, asked = tiny_model("llama", tie_word_embeddings=False), prompts(5)
    cold = generate(model, asked, options(temperature=1e-4), seed=1)
    assert [a.text for a in cold] == [a.text for a in generate(model, asked, options())]


def test_limit_marks_a_response_as_unfinished() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    answers = generate(model, prompts(), options(max_new_tokens=1))
    assert {answer.num_tokens for answer in answers} == {1}
    assert all(answer.finished == (answer.text == "") for answer in answers)


def test_too_long_prompts_get_an_empty_unfinished_response() -> None:
    model = tiny_model(max_position_embeddings=64)
    long = words([9] * (64 - LIMIT))  # BOS makes it one too many
    short = words([9] * (63 - LIMIT))
    first, second = generate(model, [long, short], options())
    assert (first.text, first.num_tokens, first.finished) == ("", 0, False)
    assert first.confidence == pytest.approx(-math.log(VOCAB))
    assert second.num_tokens > 0


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_limit_that_leaves_no_prompt_any_room_is_refused(beyond: int) -> None:
    model = tiny_model(max_position_embeddings=64)
    with pytest.raises(
        ConfigError, match=rf"max_new_tokens is {64 + beyond}, .* 64 positions.* less than 64"
    ):
        generate(model, prompts(2), options(max_new_tokens=64 + beyond))


def test_no_prompts_and_progress() -> None:
    model, seen = tiny_model("llama", tie_word_embeddings=False), []
    assert generate(model, [], options()) == []
    generate(model, prompts(5), options(2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_the_adapter_speaks_and_the_weights_come_back() -> None:
    model = tiny_model("llama", tie_word_embeddings=False, lora=LORA)
    base = [a.text for a in generate(model, prompts(4), options())]
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    before = state_hash(dict(model.network.state_dict()))
    adapted = [a.text for a in generate(model, prompts(4), options())]
    assert adapted != base
    assert adapted == [model.text(alone(model, prompt)) for prompt in prompts(4)]
    assert state_hash(dict(model.network.state_dict())) == before


def test_cache_keeps_rows_apart_when_it_moves_them() -> None:
    """Rows of known content: admitted wider than what is there, moved, dropped, and pushed over the edge."""

    def block(value: float, columns: int) -> torch.Tensor:
        return torch.full((1, 1, columns, 2), value)

    def newcomer(value: float, columns: int) -> RowCache:
        cache = RowCache(1, columns)
        cache.rows = 1
        cache.update(block(value, columns), block(-value, columns), 0)
        cache.advance(columns)
        return cache

    cache = RowCache(3, 10)
    cache.admit(newcomer(1.0, 3))
    cache.admit(newcomer(2.0, 5))
    lengths = [3, 5]
    for step in range(3 * _SLACK):
        if step == 4:  # the longer row ends, a third comes
            cache.rows, lengths = 1, lengths[:1]
            cache.admit(newcomer(3.0, 8))
            lengths.append(8)
        if max(lengths) == 10:
            row = lengths.index(10)
            cache.move_row(1, row)
            cache.rows, lengths = 1, [lengths[1 - row]]
            cache.admit(newcomer(float(step), 2))
            lengths.append(2)
        cache.trim(max(lengths))
        own = torch.cat([cache._buffers[0][0][row : row + 1, :, -1:] * 0 + 7 for row in range(cache.rows)])
        keys, values = cache.update(own, -own, 0)
        cache.advance(1)
        lengths = [length + 1 for length in lengths]
        assert keys.shape[2] == max(lengths) == cache.get_seq_length()
        assert torch.equal(keys, -values)
        for row, length in enumerate(lengths):
            mine = keys[row, 0, -length:, 0]
            assert (mine != 0).all()
            assert len(set(mine[mine != 7].tolist())) <= 1  # one prompt's value, then decoded sevens
