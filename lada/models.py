"""The edge to transformers and peft: no other module imports them.

It makes networks and adapters and renders chats; `lada.language_model` has what LaDa does with them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from lada.asking import Asking
from lada.config import LoraOptions
from lada.errors import ModelError
from lada.model_facts import known_models

transformers.logging.set_verbosity_error()


def build_network(config: Mapping[str, Any], *, seed: int, dtype: str = "float32") -> Any:
    """A causal LM from a transformers config with random weights.

    Args:
        config: the content of a config.json; ``model_type`` picks the class.
        seed: of the initial weights; torch's global generator is left as it was.
        dtype: of the weights.
    """
    hf_config = _hf_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(
            hf_config,
            dtype=getattr(torch, dtype),
            attn_implementation=_attention(hf_config),
        )
    return network.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, for the class of transformers that carries the model.

    Choice: code that was published with a model is never run. Where `lada.model_facts` names a class that
    carries it exactly (InternLM3 in Llama's, without biases), that one is built.

    Raises:
        ModelError: it is missing, or no class here carries the model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; for lab models run `make lab-models`")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        published = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no model's configuration: {error!r}") from error
    carriers = {one.published_type: one.model_type for one in known_models().values() if one.published_type}
    if published in carriers:
        biased = [name for name in ("bias", "qkv_bias") if config.get(name)]
        if biased:
            raise ModelError(
                f"{path}: {published} is carried by the class {carriers[published]} only without {biased[0]}"
            )
        dropped = ("auto_map", "architectures", "bias", "qkv_bias")
        config = {key: value for key, value in config.items() if key not in dropped}
        config["model_type"] = carriers[published]
    elif published not in transformers.CONFIG_MAPPING:
        raise ModelError(f"{path}: transformers {transformers.__version__} has no class for '{published}'")
    return config


def hollow(config: Mapping[str, Any], dtype: torch.dtype, attention: str | None, folder: Path) -> Any:
    """A network whose parameters take no memory yet; what it computes for itself is there."""
    import accelerate

    try:
        hf_config = _hf_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"{folder}/config.json: {error}") from error
    with torch.random.fork_rng(devices=[]), accelerate.init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(
            hf_config, dtype=dtype, attn_implementation=attention or _attention(hf_config)
        )


def _hf_config(config: Mapping[str, Any]) -> Any:
    values = {
        key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")
    }
    return transformers.AutoConfig.for_model(config["model_type"], **values)


def _attention(hf_config: Any) -> str:
    # Gemma-2 caps its attention scores, which only the eager kernel honours on CPU.
    return "eager" if getattr(hf_config, "attn_logit_softcapping", None) else "sdpa"


def with_adapter(network: Any, lora: LoraOptions, seed: int) -> Any:
    """The network wrapped in a PeftModel with a new adapter ``default``, whose weights ``seed`` decides."""
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks for a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return peft.get_peft_model(network, config)


def adapter_parameters(network: Any, name: str) -> dict[str, Tensor]:
    """Parameters of one adapter, by names that do not hold the adapter's name."""
    return {
        key.replace(f".{name}.", "."): value
        for key, value in network.state_dict(keep_vars=True).items()
        if "lora_" in key and f".{name}." in key
    }


def freeze_adapter(network: Any, name: str) -> None:
    """Keep training from changing one adapter."""
    for key, parameter in network.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.requires_grad_(False)


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """Name -> base layer of every layer that has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: layer.get_base_layer()
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def rendered(text: str, asking: Asking) -> str:
    """A prompt as the one turn of a chat, up to where the response begins."""
    from transformers.utils.chat_template_utils import render_jinja_template

    assert asking.form is not None
    options = {**asking.specials, **asking.form.options}
    rendered, _ = render_jinja_template(
        [[{"role": "user", "content": text}]],
        chat_template=asking.template,
        add_generation_prompt=True,
        **options,
    )
    return str(rendered[0])
