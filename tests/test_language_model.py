from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, BOS, EOS, LORA, PAD, tiny_model

from lada.config import LoraOptions
from lada.errors import ModelError
from lada.language_model import LanguageModel, state_hash

IDS = torch.tensor([[BOS, 9, 8, 7, 6, 5]])
BOTH = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.network(input_ids=IDS).logits
    return out


def disturb(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_and_head_make_the_logits_of_the_network(architecture: str) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        scores = model.hidden(IDS) @ model.head_weight.t()
    if architecture == "gemma2":
        assert model.softcap == 30.0
        scores = 30.0 * torch.tanh(scores / 30.0)
    else:
        assert model.softcap is None
    torch.testing.assert_close(scores, logits(model))


def test_hidden_layers_are_one_per_layer() -> None:
    model = tiny_model()
    layers = model.hidden_layers(IDS, torch.ones_like(IDS))
    assert len(layers) == 2
    assert layers[0].shape == (1, 6, 32)
    torch.testing.assert_close(layers[-1], model.hidden(IDS))


def test_text_and_ids() -> None:
    model = tiny_model()
    assert model.prompt_ids("t9 t8") == [BOS, 9, 8]
    assert model.response_ids("t7") == [7, EOS]
    assert model.response_ids("t7", finished=False) == [7]
    assert model.text([7, 8, EOS]) == "t7 t8"
    assert (model.pad_id, model.max_positions) == (PAD, 256)
    assert tiny_model(bos_token_id=None).prompt_ids("t9") == [9]
    assert tiny_model(pad_token_id=None).pad_id == EOS


@BOTH
def test_state_comes_back_and_misfits_are_refused(lora: LoraOptions | None) -> None:
    model = tiny_model(lora=lora)
    before, outcome = model.state(), logits(model)
    disturb(model, 1)
    assert not torch.equal(logits(model), outcome)
    model.load_state(before)
    assert torch.equal(logits(model), outcome)
    key = next(iter(before))
    with pytest.raises(ModelError, match="one side only"):
        model.load_state({name: value for name, value in before.items() if name != key})
    with pytest.raises(ModelError, match="has shape"):
        model.load_state(before | {key: torch.zeros(1, 1, 1)})


@BOTH
def test_reference_is_the_model_as_it_came_until_it_is_set(lora: LoraOptions | None) -> None:
    model = tiny_model(lora=lora)
    came = logits(model)
    disturb(model, 1)
    with model.reference():
        assert torch.equal(logits(model), came)
    tuned = logits(model)
    model.set_reference(model.state())
    disturb(model, 2)
    policy = logits(model)
    with model.reference():
        assert torch.equal(logits(model), tuned)
    assert torch.equal(logits(model), policy)


def test_the_reference_adapter_is_frozen_and_not_part_of_the_state() -> None:
    model = tiny_model(lora=LORA)
    count, keys = len(model.trainable()), model.state().keys()
    model.set_reference(model.state())
    with model.reference():
        pass
    assert len(model.trainable()) == count
    assert model.state().keys() == keys


def test_reference_ends_even_when_its_user_fails() -> None:
    model = tiny_model(lora=LORA)
    model.set_reference(model.state())
    disturb(model, 1)
    policy = logits(model)
    with pytest.raises(ZeroDivisionError), model.reference():
        raise ZeroDivisionError
    assert torch.equal(logits(model), policy)
    assert model.trainable()


def test_merging_gives_the_same_model_and_the_bits_come_back() -> None:
    model = tiny_model(lora=LORA)
    disturb(model, 1)
    model.set_reference(model.state())
    disturb(model, 2)
    before, policy = state_hash(dict(model.network.state_dict())), logits(model)
    for _ in range(2):
        with model.merged() as network, torch.no_grad():
            torch.testing.assert_close(network(input_ids=IDS).logits, policy, rtol=1e-4, atol=1e-4)
        assert state_hash(dict(model.network.state_dict())) == before
        assert torch.equal(logits(model), policy)


def test_merging_without_an_adapter_is_the_network_itself() -> None:
    model = tiny_model()
    with model.merged() as network:
        assert network is model.network


def test_delta() -> None:
    full, adapted = tiny_model(), tiny_model(lora=LORA)
    assert all(not value.any() for value in full.delta().values())
    came = full.state()
    disturb(full, 1)
    for key, value in full.delta().items():
        torch.testing.assert_close(came[key] + value, full.state()[key])
    assert state_hash(adapted.delta()) == state_hash(adapted.state())


def test_seeds_decide_weights_and_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    same = [state_hash(tiny_model(seed=seed, lora=LORA).network.state_dict()) for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_state_hash_sees_names_shapes_and_values() -> None:
    value = torch.arange(6.0)
    one = {"a": value}
    others = [{"b": value}, {"a": value.reshape(2, 3)}, {"a": value + 1}, {"a": value.double()}]
    assert len({state_hash(state) for state in [one, *others]}) == 5
    assert state_hash({"b": value, "a": value}) == state_hash({"a": value, "b": value})
