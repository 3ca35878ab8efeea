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
from lada.config import (
    CONFIGS,
    SERVER,
    Layer,
    Options,
    Positive,
    Rate,
    merge,
    read_yaml,
    validate,
)
from lada.errors import ConfigError


class PromptForm(Options):
    """How a prompt is made.

    Attributes:
        kind: ``chat`` goes through the tokenizer's chat template, ``plain`` is text as it is.
        bos: the first token is BOS. Choice: as the tokenizer itself does it; config.json of the Qwen models
            names a bos_token_id that their tokenizers never set.
        end_of_turn: token that ends a chat response; None: the EOS of config.json.
        options: of the chat template, e.g. Qwen3's ``enable_thinking``.
    """

    kind: Literal["chat", "plain"]
    bos: bool
    end_of_turn: str | None = None
    options: dict[str, bool] = Field(default_factory=dict)


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


def with_model_rates(found: Sequence[Layer], configs: Path = CONFIGS) -> list[Layer]:
    """A run's layers, and one more with its models' own rates and epochs (paper tier).

    A model's values take the place of the tier's alone: what a method's file, a matrix or SET says about
    ``training.<role>.learning_rate`` or ``epochs``, or a scenario about a party, stands. Local rates are not
    per party: the smallest of the clients' models is taken.

    Args:
        found: layers as `config.layers` gives them, the tier's own first.

    Raises:
        ConfigError: the paper tier and a model that nothing is known of.
    """
    merged, origins = merge(found)
    parties = merged.get("parties")
    if merged.get("tier") not in ("paper", "rehearsal") or not isinstance(parties, list):
        return list(found)
    tier = found[0][0]
    filled, local = [], []
    for party in parties:
        tuning = model_facts(party["model"], configs).tuning
        role = "server" if party["name"] == SERVER else "client"
        rates = tuning.lora if merged.get("lora") is not None else tuning.full
        own = {"learning_rate": rates.distillation, "epochs": getattr(tuning.epochs, role)}
        free = {k: v for k, v in own.items() if origins.get(f"training.{role}.{k}", tier).startswith(tier)}
        filled.append({**free, **party})
        local += [rates.local] if role == "client" else []
    content: dict[str, Any] = {"parties": filled}
    if local and origins.get("training.local.learning_rate", tier).startswith(tier):
        content["training"] = {"local": {"learning_rate": min(local)}}
    return [*found, (str(configs / "models"), content)]
