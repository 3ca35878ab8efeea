"""What the filter sees: pooled prompt states against a naive computation, and the pair's history."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lada.config import LoraOptions
from lada.language_model import LanguageModel
from lada.models import build_network
from lada.selection.features import (
    FeatureOptions,
    SampleHistory,
    history_features,
    prompt_features,
    spaced,
)

WORDS = ["what", "is", "the", "sum", "of", "two", "and", "three", "age", "day", "order", "unit", "fact"]
PROMPTS = [
    "what is the sum of two and three",
    "day",
    "order of the day",
    "age and unit",
    "fact",
    "the day is two",
]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = LLAMA | {"model_type": "gemma2", "head_dim": 6, "num_hidden_layers": 4, "sliding_window": 32}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


def language_model(config: dict[str, object] = LLAMA, lora: LoraOptions | None = None) -> LanguageModel:
    return LanguageModel(build_network(config, seed=0), tokenizer(), lora=lora)


def naive(model: LanguageModel, prompt: str, layers: list[int]) -> np.ndarray:
    """One prompt alone, in float64 after the forward pass: mean over tokens, then scaled per layer."""
    ids = torch.tensor([model.prompt_ids(prompt)])
    with torch.no_grad():
        states = model.hidden_layers(ids, torch.ones_like(ids))
    parts = []
    for layer in layers:
        mean = states[layer][0].double().mean(dim=0).numpy()
        parts.append((mean - mean.mean()) / np.sqrt(mean.var() + 1e-5))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "config, layers", [(LLAMA, [0, 2, 3, 5]), (GEMMA, [0, 1, 2, 3])], ids=["llama", "gemma2"]
)
def test_features_are_the_pooled_states_of_each_prompt_alone(
    config: dict[str, object], layers: list[int]
) -> None:
    model = language_model(config)
    found = prompt_features(model, PROMPTS, FeatureOptions())
    assert found.shape == (6, 4 * 24) and found.dtype == np.float32
    expected = np.stack([naive(model, prompt, layers) for prompt in PROMPTS])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    per_layer = found.reshape(6, 4, 24)
    np.testing.assert_allclose(per_layer.mean(axis=2), 0, atol=1e-5)
    assert np.all(per_layer.std(axis=2) <= 1 + 1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 12, 8192])
def test_neither_order_nor_micro_batches_matter(micro_tokens: int) -> None:
    model = language_model()
    expected = prompt_features(model, PROMPTS, FeatureOptions())
    order = [3, 0, 5, 1, 4, 2]
    found = prompt_features(model, [PROMPTS[i] for i in order], FeatureOptions(), micro_tokens=micro_tokens)
    np.testing.assert_allclose(found, expected[order], atol=2e-5)


def test_order_does_not_change_a_bit() -> None:
    """Micro-batches are formed by length and text, so they are the same batches for any order."""
    model = language_model()
    prompts = [" ".join(WORDS[i : i + 1 + i % 3]) for i in range(len(WORDS))]
    expected = prompt_features(model, prompts, FeatureOptions(), micro_tokens=20)
    order = np.random.default_rng(0).permutation(len(prompts))
    found = prompt_features(model, [prompts[i] for i in order], FeatureOptions(), micro_tokens=20)
    assert np.array_equal(found, expected[order])


def test_micro_batches_stay_within_their_tokens() -> None:
    model = language_model()
    shapes: list[tuple[int, int]] = []
    model.body.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompt_features(model, PROMPTS, FeatureOptions(), micro_tokens=12)
    assert sum(rows for rows, _ in shapes) == 6 and len(shapes) > 1
    assert all(rows * width <= 12 or rows == 1 for rows, width in shapes)
    assert any(rows > 1 for rows, _ in shapes)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks the old name
def test_features_leave_the_model_as_it_was() -> None:
    lora = LoraOptions(rank=2, alpha=4, dropout=0.5, targets=("q_proj",))
    model = language_model(lora=lora)
    model.network.train()
    first = prompt_features(model, PROMPTS, FeatureOptions())
    assert model.network.training
    assert np.array_equal(first, prompt_features(model, PROMPTS, FeatureOptions())), "no dropout"
    assert all(parameter.grad is None for parameter in model.trainable())
    model.network.eval()
    prompt_features(model, PROMPTS, FeatureOptions())
    assert not model.network.training


def test_features_follow_the_model_as_it_learns() -> None:
    model = language_model()
    before = prompt_features(model, PROMPTS, FeatureOptions())
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.mul_(1.5)
    assert np.abs(prompt_features(model, PROMPTS, FeatureOptions()) - before).max() > 0.01


@pytest.mark.parametrize(
    "depth, wanted, expected",
    [(6, 4, [0, 2, 3, 5]), (4, 4, [0, 1, 2, 3]), (3, 4, [0, 1, 2]), (32, 4, [7, 15, 23, 31]), (5, 1, [4])],
)
def test_layers_are_spaced_evenly_with_the_last(depth: int, wanted: int, expected: list[int]) -> None:
    assert spaced(depth, wanted) == expected


def test_tfidf_needs_no_model_and_tells_texts_apart() -> None:
    options = FeatureOptions(encoder="tfidf")
    found = prompt_features(language_model(), [*PROMPTS, PROMPTS[0]], options)
    assert found.shape == (7, 512) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    assert np.array_equal(found[0], found[6])
    assert found[0] @ found[5] > found[0] @ found[3] > found[0] @ found[1] == 0.0, (
        "three, one, no common words"
    )


@pytest.mark.parametrize("changed", [{"encoder": "tfidf"}, {"num_layers": 2}], ids=str)
def test_prompt_options_change_features(changed: dict[str, object]) -> None:
    model = language_model()
    found = prompt_features(model, PROMPTS, FeatureOptions.model_validate(changed))
    assert found.shape != prompt_features(model, PROMPTS, FeatureOptions()).shape


# -- history

HISTORY = {
    "a": SampleHistory(0.6, -0.2, 20, 35, 1, confidence=-0.4),
    "b": SampleHistory(250.0, -250.0, 3, 400, 2),
}


def test_history_rows() -> None:
    found = history_features(["b", "new", "a"], HISTORY, FeatureOptions(history=True))
    expected = [
        [1, 10, -10, np.log(4), np.log(401), 2],
        [0] * 6,
        [1, 0.6, -0.2, np.log(21), np.log(36), 1],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_confidence_is_zero_with_a_flag_where_it_is_unknown() -> None:
    options = FeatureOptions(sender_confidence=True)
    found = history_features(["a", "b", "new"], HISTORY, options)
    np.testing.assert_allclose(found, [[-0.4, 1], [0, 0], [0, 0]], rtol=1e-6)
    both = history_features(["a"], HISTORY, FeatureOptions(history=True, sender_confidence=True))
    assert both.shape == (1, 8) and both[0, 6] == np.float32(-0.4)


def test_without_options_history_adds_nothing() -> None:
    assert history_features(["a", "b"], HISTORY, FeatureOptions()).shape == (2, 0)
