"""What is known of the paper's models: shapes that transformers builds, rates that a run takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada.architecture import LINEARS
from lada.config import RunConfig
from lada.errors import ConfigError
from lada.layers import CONFIGS, dump_run, layers, read_run, read_yaml
from lada.model_facts import known_models, model_facts
from lada.runs import resolve_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS = sorted(known_models())


def build(model: str) -> Any:
    """The whole model without memory, by the class and the config that the facts name."""
    values = dict(known_models()[model].config_json)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_the_ten_models_of_table_1_and_no_others() -> None:
    wanted = {
        party["model"]
        for path in (CONFIGS / "scenarios").glob("*.yaml")
        for party in read_yaml(path)["parties"]
    }
    assert set(MODELS) == wanted and len(MODELS) == 10


@pytest.mark.parametrize("model", MODELS)
def test_counts_are_those_of_the_network_that_transformers_builds(model: str) -> None:
    facts, network = model_facts(model), build(model)
    sizes = dict(network.named_parameters())
    assert sum(one.numel() for one in sizes.values()) == facts.architecture.parameters
    layer = [one.numel() for name, one in sizes.items() if ".layers.0." in name]
    assert sum(layer) == facts.architecture.layer_parameters
    for name, shape in facts.architecture.linears.items():
        found = [
            tuple(one.shape) for key, one in sizes.items() if key.endswith(f".0.self_attn.{name}.weight")
        ]
        found += [tuple(one.shape) for key, one in sizes.items() if key.endswith(f".0.mlp.{name}.weight")]
        assert found == [shape], name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("model", MODELS)
def test_adapters_have_as_many_parameters_as_peft_makes(model: str) -> None:
    peft = pytest.importorskip("peft")
    facts = model_facts(model)
    small = facts.architecture.model_copy(update={"num_layers": 2, "vocab_size": 128})
    values = small.config_json(facts.model_type)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=None)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    options = peft.LoraConfig(r=16, target_modules=list(facts.lora_targets), task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(network, options, low_cpu_mem_usage=True)
    count = sum(one.numel() for name, one in adapted.named_parameters() if "lora_" in name)
    assert count == small.lora_parameters(16, facts.lora_targets)


def test_dynamic_positions_are_plain_ones_up_to_the_longest_sequence() -> None:
    """InternLM3 in Llama's class: its remote code stretches positions beyond max_positions alone."""
    facts = model_facts("internlm/internlm3-8b-instruct")
    small = facts.architecture.model_copy(update={"num_layers": 1, "vocab_size": 64, "hidden_size": 64})
    plain = small.model_copy(update={"rope_scaling": None})
    positions = torch.tensor([[0, 1, 1000, small.max_positions - 1]])
    found = []
    for one in (small, plain):
        values = one.config_json(facts.model_type)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        found.append(rotary(torch.zeros(1), positions))
    for scaled, unscaled in zip(*found, strict=True):
        assert torch.equal(scaled, unscaled) and scaled.shape == (1, 4, small.head_dim)


def test_counts_as_they_are_published() -> None:
    """In billions, as the models' own pages and papers round them."""
    published = {
        "google/gemma-2-2b": 2.61,
        "google/gemma-2-27b": 27.23,
        "meta-llama/Meta-Llama-3-8B": 8.03,
        "Qwen/Qwen3-8B": 8.19,
        "Qwen/Qwen3-32B": 32.76,
        "Qwen/Qwen2.5-72B-Instruct": 72.71,
        "internlm/internlm3-8b-instruct": 8.80,
    }
    for model, billions in published.items():
        assert model_facts(model).architecture.parameters / 1e9 == pytest.approx(billions, abs=0.006), model


def test_what_a_model_needs() -> None:
    facts = known_models()
    assert {name for name, one in facts.items() if one.licence.gated} == {
        "google/gemma-2-2b",
        "google/gemma-2-27b",
        "meta-llama/Meta-Llama-3-8B",
    }
    plain = {name for name, one in facts.items() if one.prompt.kind == "plain"}
    assert plain == {name for name, one in facts.items() if one.licence.gated}, "the three base models"
    for name, one in facts.items():
        assert (one.attention == "eager") == (one.architecture.attention_softcap is not None), name
        assert one.prompt.options == ({"enable_thinking": False} if "Qwen3" in name else {})
        assert set(one.lora_targets) == set(LINEARS) and one.dtype == "bfloat16"
        assert 2e-4 >= one.tuning.lora.distillation >= one.tuning.full.distillation >= 9e-7, name
        assert one.max_new_tokens <= paper("2").generation.max_new_tokens


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'Qwen/Qwen3-7B'; there are: Qwen/Qwen2.5-72B"):
        model_facts("Qwen/Qwen3-7B")
    with pytest.raises(ConfigError, match="no linear map 'c_attn'; legal: q_proj"):
        model_facts("Qwen/Qwen3-8B").architecture.lora_parameters(8, ["c_attn"])


# -- a run takes rates over


def paper(scenario: str, *settings: str, method: str = "lada", tier: str = "paper") -> RunConfig:
    found = layers(
        scenario=scenario, method=method, dataset="mathinstruct", size="paper", tier=tier, settings=settings
    )
    return resolve_run(found)


def test_each_party_has_its_models_rate_and_epochs() -> None:
    config = paper("1")
    for party in config.parties:
        tuning = model_facts(party.model).tuning
        epochs = tuning.epochs.server if party.name == "server" else tuning.epochs.client
        assert (party.learning_rate, party.epochs) == (tuning.lora.distillation, epochs)
    assert [local_rate(config, name) for name in config.clients] == [1e-4, 5e-5, 1e-4]
    full = paper("1", "lora=null")
    assert [party.learning_rate for party in full.parties] == [1e-6, 5e-6, 1e-6, 2e-6]
    assert local_rate(full, "client-2") == 5e-6 and full.lora is None


def local_rate(config: RunConfig, party: str) -> float:
    return config.of_party(party).training.local.learning_rate


def test_each_party_has_what_its_model_needs() -> None:
    config = paper("1", "generation.temperature=0.7")
    for party in config.parties:
        facts, own = model_facts(party.model), config.of_party(party.name)
        assert party.prompt == facts.prompt and party.attention == facts.attention
        assert own.generation.max_new_tokens == facts.max_new_tokens and own.generation.temperature == 0.7
        assert own.lora is not None and own.lora.targets == facts.lora_targets
        assert own.lora.rank == config.lora.rank and own.numerics.dtype == facts.dtype
    assert {config.of_party(name).generation.max_new_tokens for name in config.clients} == {512}
    said = paper("1", "generation.max_new_tokens=64", "numerics.dtype=float32", "lora.targets=[q_proj]")
    own = said.of_party("client-1")
    assert own.generation.max_new_tokens == 64 and own.numerics.dtype == "float32"
    assert own.lora is not None and own.lora.targets == ("q_proj",)


def test_what_models_need_is_spelled_out_in_run_yaml_and_read_back(tmp_path: Path) -> None:
    config = paper("3")
    (tmp_path / "run.yaml").write_text(dump_run(config), encoding="utf-8")
    assert read_run(tmp_path) == config
    assert config.party("client-1").prompt.options == {"enable_thinking": False}


def test_options_that_came_later_leave_earlier_runs_their_names() -> None:
    """The ids of two runs as they were before parties had options of their own."""
    lab = resolve_run(layers(scenario="1", method="standalone", dataset="lab-math", size="tiny"))
    assert lab.run_id == "1-standalone-lab-math-0shot-s0-35b73bbd"
    changed = lab.parties[0].model_copy(update={"max_new_tokens": 7})
    assert lab.model_copy(update={"parties": (changed, *lab.parties[1:])}).run_id != lab.run_id
    stopping = lab.generation.model_copy(update={"stop_at_answer": True})
    assert lab.model_copy(update={"generation": stopping}).run_id != lab.run_id


def test_what_somebody_says_stands() -> None:
    config = paper("1", "training.client.learning_rate=3e-6", "training.local.learning_rate=7e-6")
    rates = {party.name: party.learning_rate for party in config.parties}
    assert rates == {"server": 2e-5, "client-1": None, "client-2": None, "client-3": None}
    assert [local_rate(config, name) for name in config.clients] == [7e-6] * 3
    socratic = paper("1", method="socratic_cot")
    assert [party.epochs for party in socratic.parties] == [1, None, None, None], (
        "the method's own file says 3"
    )


@pytest.mark.parametrize(
    ("parties", "part"),
    [
        ("[{name: server, modle: Qwen/Qwen3-32B}]", "did you mean 'model'?"),
        ("[{model: Qwen/Qwen3-32B}]", "key 'parties.0.name' is missing"),
        ("[{name: server, model: [Qwen/Qwen3-32B]}]", "key 'parties.0.model'"),
        ("[server]", "key 'parties.0'"),
    ],
)
@pytest.mark.parametrize("tier", ["paper", "rehearsal"])
def test_a_party_of_ones_own_that_names_no_model_is_explained(
    tier: str, parties: str, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"scenario: own\nparties: {parties}\n")
    with pytest.raises(ConfigError) as caught:
        paper(str(path), tier=tier)
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_other_tiers_are_left_alone() -> None:
    for party in paper("1", tier="lab").parties:
        assert set(party.model_dump(exclude={"name", "model"}).values()) == {None}
