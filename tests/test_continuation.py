"""Generation that goes on from the beginning of a response, stops at a text, and samples the likeliest."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import VOCAB, random_ids, tiny_model, untangled, words

from lada import decoding
from lada.config import GenerationOptions
from lada.generation import generate
from lada.language_model import LanguageModel

LIMIT = 12


def options(**changes: float) -> GenerationOptions:
    return GenerationOptions(**({"max_new_tokens": LIMIT, "batch_size": 4} | changes))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama", tie_word_embeddings=False)


def asked(count: int = 6) -> list[str]:
    draw = random.Random(5)
    return [words(random_ids(draw, 1, 9)) for _ in range(count)]


def test_a_continuation_is_what_transformers_says_after_the_joined_ids(model: LanguageModel) -> None:
    begun = [words(random_ids(random.Random(number), 1, 5)) for number in range(6)]
    answers = generate(model, asked(), options(), partials=begun)
    for prompt, given, answer in zip(asked(), begun, answers, strict=True):
        joined = model.prompt_ids(prompt) + model.response_ids(given, finished=False)
        new = untangled(model, joined, LIMIT)
        assert answer.text == f"{given} {model.text(new)}".strip()
        assert answer.num_tokens == len(new)
        assert answer.finished == (new[-1] == model.eos_id)
    assert len({answer.finished for answer in answers}) == 2


def test_a_beginning_changes_the_answer_and_none_changes_nothing(model: LanguageModel) -> None:
    plain = generate(model, asked(), options())
    assert generate(model, asked(), options(), partials=[""] * 6, stops=[None] * 6) == plain
    other = generate(model, asked(), options(), partials=["t9 t9"] * 6)
    assert all(answer.text.startswith("t9 t9") for answer in other)
    assert [a.text.removeprefix("t9 t9 ") for a in other] != [a.text for a in plain]


def test_a_stop_ends_the_response_before_itself(model: LanguageModel) -> None:
    plain = generate(model, asked(), options())
    place = max(range(6), key=lambda i: len(set(plain[i].text.split())))
    spoken = plain[place].text.split()
    stop = next(word for word in spoken[2:] if word not in " ".join(spoken[:2]))
    before = plain[place].text.partition(stop)[0].strip()
    assert 2 <= len(before.split()) < len(spoken) - 1
    stops: list[str | None] = [None] * 6
    stops[place] = stop
    answers = generate(model, asked(), options(), stops=stops)
    assert answers[place].text == before
    assert (answers[place].stopped, answers[place].finished) == (True, False)
    assert answers[place].num_tokens < plain[place].num_tokens
    others = [i for i in range(6) if i != place]
    assert [answers[i].text for i in others] == [plain[i].text for i in others]
    assert not any(answers[i].stopped for i in others)


def test_a_stop_needs_something_visible_before_it_and_does_not_see_the_beginning(
    model: LanguageModel,
) -> None:
    plain = generate(model, asked(1), options())[0]
    first = plain.text.split()[0]
    answer = generate(model, asked(1), options(), stops=[first])[0]
    assert answer.text.startswith(first)
    begun = generate(model, asked(1), options(), partials=[first], stops=[first])[0]
    assert begun.text.startswith(first)
    assert begun.num_tokens > 1 or begun.finished


def test_one_seed_per_prompt_makes_a_response_independent_of_its_place(model: LanguageModel) -> None:
    warm = options(temperature=1.0)
    seeds = [11, 12, 13, 14, 15, 16]
    there = generate(model, asked(), warm, seed=seeds)
    back = generate(model, asked()[::-1], warm, seed=seeds[::-1])
    assert [a.text for a in back[::-1]] == [a.text for a in there]
    alone = generate(model, asked()[2:3], warm, seed=seeds[2:3])
    assert alone[0].text == there[2].text
    assert generate(model, asked()[2:3], warm, seed=[99])[0].text != alone[0].text


def test_the_likeliest_tokens_by_number_and_by_share() -> None:
    probabilities = torch.tensor([[0.5, 0.05, 0.3, 0.15], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    kept = decoding._likeliest(probabilities, 2, 1.0)
    assert (kept[0] > 0).tolist() == [True, False, True, False]
    assert (kept[1] > 0).all(), "ties with the last one kept are kept"
    assert (decoding._likeliest(probabilities, None, 0.5)[0] > 0).tolist() == [True, False, False, False]
    assert (decoding._likeliest(probabilities, None, 0.51)[0] > 0).tolist() == [True, False, True, False]
    both = decoding._likeliest(probabilities, 3, 0.85)  # of 0.95: 0.8075, so two tokens are not enough
    assert (both[0] > 0).tolist() == [True, False, True, True]
    assert torch.equal(both[0, :1], probabilities[0, :1])


def test_one_likeliest_token_is_greedy_and_all_are_plain_sampling(model: LanguageModel) -> None:
    greedy = [a.text for a in generate(model, asked(), options())]
    warm = generate(model, asked(), options(temperature=2.0), seed=1)
    assert [a.text for a in generate(model, asked(), options(temperature=2.0, top_k=1), seed=1)] == greedy
    assert [a.text for a in generate(model, asked(), options(temperature=2.0, top_p=1e-6), seed=1)] == greedy
    assert generate(model, asked(), options(temperature=2.0, top_k=VOCAB), seed=1) == warm
    assert [a.text for a in warm] != greedy
