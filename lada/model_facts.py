"""What is known of a real model before its weights are here: configs/models/<short name>.yaml.

Shapes as the model's config.json states them; everything else (counts, bytes) follows from them. The plan of
a run reads this on a login node, training reads prompt form, precision and rates from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lada.architecture import LINEARS, Architecture
from lada.config import SERVER, Options, Positive, PromptForm, Rate
from lada.errors import ConfigError
from lada.layers import CONFIGS, Layer, merge, read_yaml, validate


class Rates(Options):
    """Learning rates of local fine-tuning and of the distillation rounds."""

    local: Rate
    distillation: Rate


class Epochs(Options):
    """Passes per round, by role (paper, Section VI-A: 1 to 5)."""

    client: Annotated[int, Field(ge=1, le=5)]
    server: Annotated[int, Field(ge=1, le=5)]


class Tuning(Options):
    """Rates and epochs. Choice: the paper gives ranges alone (2e-4 to 9e-7), so rates fall with size."""

    lora: Rates
    full: Rates
    epochs: Epochs


class Licence(Options):
    """Under what the weights may be had; ``gated``: accepted on the model's page, downloaded with a token."""

    name: str
    gated: bool


class ModelFacts(Options):
    """A real model.

    Attributes:
        id: on the model hub.
        model_type: class of transformers that carries it.
        published_type: ``model_type`` of its own config.json where that is another.
        attention: kernel; Gemma-2's score cap needs ``eager``.
        max_new_tokens: longest response; long enough that answers are not cut.
    """

    id: str
    model_type: Literal["gemma2", "llama", "qwen2", "qwen3"]
    published_type: str | None = None
    licence: Licence
    architecture: Architecture
    prompt: PromptForm
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["eager", "sdpa"]
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEARS
    tuning: Tuning
    max_new_tokens: Positive

    @property
    def config_json(self) -> dict[str, Any]:
        """What builds it with transformers, special token ids left out."""
        return self.architecture.config_json(self.model_type)


@cache
def _all(folder: Path) -> dict[str, ModelFacts]:
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        content = read_yaml(path)
        facts = validate(ModelFacts, content, {key: str(path) for key in content})
        found[facts.id] = facts
    return found


def known_models(configs: Path = CONFIGS) -> dict[str, ModelFacts]:
    """Every model of configs/models by its id.

    Raises:
        ConfigError: naming file and key.
    """
    return dict(_all(configs / "models"))


def model_facts(model: str, configs: Path = CONFIGS) -> ModelFacts:
    """Facts of a model by its id.

    Raises:
        ConfigError: nothing is known of it; lists the models of which something is.
    """
    found = known_models(configs)
    if model not in found:
        legal = ", ".join(sorted(found))
        raise ConfigError(f"no file in {configs / 'models'} has the id '{model}'; there are: {legal}")
    return found[model]


# -- as a layer of a run's configuration


def with_model_facts(found: Sequence[Layer], configs: Path = CONFIGS) -> list[Layer]:
    """A run's layers, and one more with what its models need of their own (paper tier).

    Rates, epochs, precision, longest response, LoRA targets, attention kernel and prompt form of each party's
    model. They take the place of the tier's values alone: what a method's file, a matrix or SET says about
    ``training.<role>.learning_rate``, ``epochs``, ``generation.max_new_tokens``, ``numerics.dtype`` or
    ``lora.targets``, or a scenario about a party, stands. The prompt form goes with the template ``plain``.

    Args:
        found: layers as `layers.layers` gives them, the tier's own first.

    Raises:
        ConfigError: the paper tier and a model that nothing is known of.
    """
    merged, origins = merge(found)
    parties = merged.get("parties")
    if merged.get("tier") not in ("paper", "rehearsal") or not isinstance(parties, list):
        return list(found)
    if not all(_names_a_model(party) for party in parties):
        return list(found)  # validation says what is wrong, and in which file
    tier = found[0][0]
    filled = []
    for party in parties:
        facts = model_facts(party["model"], configs)
        role = "server" if party["name"] == SERVER else "client"
        own = _own_options(facts, role, lora=merged.get("lora") is not None)
        free = {
            name: value
            for name, (key, value) in own.items()
            if value is not None and origins.get(key, tier).startswith(tier)
        }
        if merged.get("template") != "plain":
            del free["prompt"]
        filled.append({**free, **party})
    return [*found, (str(configs / "models"), {"parties": filled})]


def _names_a_model(party: Any) -> bool:
    return isinstance(party, dict) and all(isinstance(party.get(key), str) for key in ("name", "model"))


def _own_options(facts: ModelFacts, role: str, *, lora: bool) -> dict[str, tuple[str, Any]]:
    """Option of a party -> the key that it stands for, and the model's value."""
    rates = facts.tuning.lora if lora else facts.tuning.full
    return {
        "learning_rate": (f"training.{role}.learning_rate", rates.distillation),
        "epochs": (f"training.{role}.epochs", getattr(facts.tuning.epochs, role)),
        "local_learning_rate": ("training.local.learning_rate", None if role == "server" else rates.local),
        "max_new_tokens": ("generation.max_new_tokens", facts.max_new_tokens),
        "lora_targets": ("lora.targets", list(facts.lora_targets) if lora else None),
        "dtype": ("numerics.dtype", facts.dtype),
        "attention": ("", facts.attention),
        "prompt": ("", facts.prompt.model_dump(mode="json")),
    }
