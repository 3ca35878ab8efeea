"""The only importer of transformers and peft: a causal language model with what LaDa needs of it.

`LanguageModel` hides three differences: full fine-tuning or LoRA, which policy is the reference, and how an
architecture names its body and head.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor, nn

from lada.asking import PLAIN, Asking, end_id, open_asking, open_tokenizer
from lada.config import LoraOptions, PromptForm
from lada.errors import ModelError
from lada.model_facts import known_models
from lada.ranks import ALONE, Ranks
from lada.weights import Origin, fill
from lada.zero import shard, sharing, whole

transformers.logging.set_verbosity_error()

State = dict[str, Tensor]
T = TypeVar("T")
CHECKPOINTING = "LADA_CHECKPOINTING"
"""Environment variable: not empty where activations are computed again (less memory, the same numbers)."""


class LanguageModel:
    """A causal language model, its tokenizer, and its frozen reference policy.

    Args:
        network: a transformers causal LM.
        tokenizer: a fast tokenizer (tokenizers.Tokenizer).
        lora: None for full fine-tuning, else the adapter's options.
        seed: initialises the adapter.
        asking: how prompts become ids, and what else ends a response.
        origin: where the model as it came can be read again; None: full fine-tuning keeps a copy of it.
        checkpointing: layers' activations are computed again in the backward pass in place of being kept.

    Attributes:
        network: the module to train (a PeftModel with LoRA).
        eos_id, pad_id: token ids; responses are trained with ``eos_id``.
        end_ids: ids that end a response, ``eos_id`` among them.
        head_weight: output projection [V, H].
        softcap: cap of the final logits (Gemma-2) or None.
        ranks: that hold the model together.
        optimiser: while it is trained.
        engine, in_pass: DeepSpeed's hold on it, and whether it is in the middle of a pass (`lada.zero`).
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Tokenizer,
        *,
        lora: LoraOptions | None = None,
        seed: int = 0,
        asking: Asking = PLAIN,
        origin: Origin | None = None,
        checkpointing: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.optimiser: Any = None
        self.engine: Any = None
        self.in_pass = False
        self.unmerged: State = {}
        self.hf_config = network.config
        self.tokenizer = tokenizer
        self._asking = asking
        self.eos_id: int = end_id(network.config.eos_token_id, tokenizer, asking.form)
        self.end_ids = frozenset({self.eos_id, *asking.ends})
        pad = network.config.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad
        self._prefix = _prefix(network.config.bos_token_id, asking.form)
        self.softcap: float | None = getattr(network.config, "final_logit_softcapping", None)
        self.lora = lora
        self.checkpointing = checkpointing
        if checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        self._base = network
        self.network: Any = _with_adapter(network, lora, seed) if lora else network
        self._reference: State | None = None
        self._origin = origin
        self._initial = None if lora or origin else self.state()

    # -- text <-> ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a prompt, with BOS where the model has one, as a turn of a chat where it is asked in one."""
        asking = self._asking
        if asking.is_chat and asking.form is not None:
            text = _rendered(text, asking)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def response_ids(self, text: str, *, finished: bool = True) -> list[int]:
        """Ids of a response, with EOS where it ended by itself (`finished`).

        In a chat nothing stands between the prompt and the response, so spaces before it are dropped.
        """
        text = text.lstrip(" ") if self._asking.is_chat else text
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*ids, self.eos_id] if finished else ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded

    # -- forward passes

    @property
    def body(self) -> nn.Module:
        """The decoder without its head; adapters inside it stay active."""
        body: nn.Module = self._base.model
        return body

    @property
    def head_weight(self) -> Tensor:
        """Output projection [V, H]."""
        weight: Tensor = self._base.get_output_embeddings().weight
        return weight

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence that the model was made for."""
        positions: int = self.hf_config.max_position_embeddings
        return positions

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    def with_head(self, function: Callable[..., T], hidden: Tensor, *rest: object) -> T:
        """``function(hidden, head weight [V, H], *rest)``, with the weight whole."""
        if not self.ranks.shards:
            return function(hidden, self.head_weight, *rest)
        head: Callable[..., T] = self._base.get_output_embeddings()
        return head(hidden, function, *rest)

    @property
    def head_shape(self) -> tuple[int, int]:
        """V, H."""
        rows, columns = getattr(self.head_weight, "ds_shape", self.head_weight.shape)
        return rows, columns

    @property
    def base(self) -> Any:
        """The causal LM without its adapters' wrapping."""
        return self._base

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states [B, S, H] after the final norm, without the head."""
        output = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def hidden_layers(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [B, S, H] after each layer, first layer first (embeddings left out)."""
        output = self.body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=True,
        )
        return tuple(output.hidden_states[1:])

    def extend(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Last hidden state [B, H] of each row after ``input_ids`` [B, S], which ``cache`` takes in.

        Args:
            attention_mask: over the cached and the new columns [B, cached + S].
            positions: of the new tokens in their own rows [B, S].
            cache: has the methods that attention layers call (see `row_cache.RowCache`).
        """
        output = self.body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states[:, -1]

    # -- states

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training may change."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def state(self) -> State:
        """A copy of what training may change: the adapter, or all weights."""
        return self.ranks.call(_gathered, self) if self.ranks.shards else _copy(self._own("default"))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` back.

        Raises:
            ModelError: when keys or shapes are not this model's.
        """
        self._assign(state, "default")

    def _assign(self, state: Mapping[str, Tensor], adapter: str) -> None:
        own = self._own(adapter)
        for key in own.keys() ^ state.keys():
            raise ModelError(f"weights do not fit the model: '{key}' is on one side only")
        for key, value in own.items():
            shape = getattr(value, "ds_shape", value.shape)
            if shape != state[key].shape:
                raise ModelError(
                    f"weights do not fit the model: '{key}' has shape {tuple(state[key].shape)},"
                    f" expected {tuple(shape)}"
                )
        self.ranks.call(_write, self, adapter, list(own), state=state)

    def set_reference(self, state: Mapping[str, Tensor]) -> None:
        """Fix the reference policy: with LoRA as a frozen second adapter ``ref``, else as weights.

        Never called on the server: its reference is the model as it came (method, section 1).
        """
        if self.lora is None:
            self._reference = _copy(state)
            return
        self.ranks.call(_add_reference, self)
        self._assign(state, "ref")

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, forward passes are the reference policy's: `set_reference`'s, else the base model's.

        Full fine-tuning sets the policy's weights aside meanwhile, in host memory.
        """
        if self.lora is not None:
            self.ranks.call(_begin_reference, self)
            try:
                yield
            finally:
                self.ranks.call(_end_reference, self)
        else:
            now = self.state()
            if self._reference is None:
                self._load_initial()
            else:
                self.load_state(self._reference)
            try:
                yield
            finally:
                self.load_state(now)

    @contextlib.contextmanager
    def merged(self) -> Iterator[Any]:
        """Inside, the adapter is merged into the base weights; yields the plain causal LM.

        The base weights come back bit for bit afterwards: those that an adapter touches are set aside in host
        memory, not un-merged. Choice: where ranks hold shares of the weights, the adapter stays beside them.
        """
        if self.lora is None or self.ranks.shards:
            yield self._base
            return
        self.ranks.call(_merge, self)
        try:
            yield self._base
        finally:
            self.ranks.call(_unmerge, self)

    def delta(self) -> State:
        """What a party publishes: the adapter, or the difference of the weights to the model as it came."""
        if self.lora is not None:
            return self.state()
        found = self.state()
        for key, value in self._came(found):
            found[key] -= value
        return found

    def _came(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """The weights of the model as it came (full fine-tuning), on the CPU."""
        return (
            self._origin.tensors(wanted) if self._origin is not None else iter((self._initial or {}).items())
        )

    def _load_initial(self) -> None:
        for key, value in self._came(self._own("default")):
            self.ranks.call(_write, self, "default", [key], state={key: value})

    def _own(self, adapter: str) -> State:
        """An adapter's parameters, or all weights, a head that is tied to the embeddings once."""
        if self.lora is not None:
            return _adapter(self.network, adapter)
        whole: State = self._base.state_dict(keep_vars=True)
        if self.hf_config.tie_word_embeddings:
            whole = {key: value for key, value in whole.items() if key != "lm_head.weight"}
        return whole


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


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    lora: LoraOptions | None = None,
    seed: int = 0,
    ranks: Ranks = ALONE,
    form: PromptForm | None = None,
    attention: str | None = None,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> LanguageModel:
    """A model from a folder with config.json, a tokenizer and its weights in one file or several.

    Every tensor is read once, onto ``device``: there is never a second copy of the model.

    Args:
        form: how it is asked; None: plain text.
        attention: kernel; None: ``eager`` where scores are capped, else ``sdpa``.

    Raises:
        ModelError: when a file is missing or does not fit the others; names it.
    """
    config = read_config(folder)
    tokenizer = open_tokenizer(folder)
    precision = getattr(torch, dtype)
    tied = bool(config.get("tie_word_embeddings"))
    network = _hollow(config, precision, attention, folder)
    tied = tied or bool(network.config.tie_word_embeddings)
    share = sharing(ranks) if ranks.shards else None
    fill(network, folder, device=torch.device(device), dtype=precision, tied=tied, placed=share)
    network.tie_weights()
    network.to(device)  # what it computes for itself, such as frequencies of positions
    model = LanguageModel(
        network.eval(),
        tokenizer,
        lora=lora,
        seed=seed,
        ranks=ranks,
        asking=open_asking(folder, form),
        origin=None if lora else Origin(folder, precision),
        checkpointing=checkpointing,
    )
    if ranks.shards:
        shard(model)
    return model


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


def default_device() -> str:
    """The GPU of this process, where there is one; torchrun counts a node's processes in LOCAL_RANK."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def open_on_rank(ranks: Ranks, folder: Path, options: Mapping[str, Any]) -> LanguageModel:
    """`load_model` on one of several ranks."""
    return load_model(folder, ranks=ranks, device=ranks.device, **options)


# -- commands: what every rank does to its part of a model


def _gathered(model: LanguageModel) -> State:
    """A copy of what training may change, whole, on rank 0."""
    found = {}
    for key, value in model._own("default").items():
        with whole(value):
            if model.ranks.leads:
                found[key] = value.detach().cpu().clone()
    return found


def _write(
    model: LanguageModel, adapter: str, keys: list[str], *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Put rank 0's ``state`` into the weights of an adapter, or into all, one after the other."""
    own = model._own(adapter)
    with torch.no_grad():
        for key in keys:
            with whole(own[key], write=True):
                if state is not None:
                    own[key].copy_(state[key])
                if not hasattr(own[key], "ds_id"):
                    model.ranks.send(own[key])


def _add_reference(model: LanguageModel) -> None:
    if "ref" not in model.network.peft_config:
        model.network.add_adapter("ref", model.network.peft_config["default"])
    _end_reference(model)


def _begin_reference(model: LanguageModel) -> None:
    if "ref" in model.network.peft_config:
        model.network.set_adapter("ref")
    else:
        model.network.base_model.disable_adapter_layers()


def _end_reference(model: LanguageModel) -> None:
    if "ref" in model.network.peft_config:
        model.network.set_adapter("default")
        _freeze(model.network, "ref")
    else:
        model.network.base_model.enable_adapter_layers()


def _merge(model: LanguageModel) -> None:
    model.unmerged = _copy({name: layer.weight for name, layer in _adapted(model.base).items()})
    model.network.merge_adapter(["default"])


def _unmerge(model: LanguageModel) -> None:
    model.network.unmerge_adapter()
    with torch.no_grad():
        for name, layer in _adapted(model.base).items():
            layer.weight.copy_(model.unmerged[name])
    model.unmerged = {}


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().contiguous().cpu()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def set_matmul_precision(wanted: str) -> tuple[str, float]:
    """Set float32 matrix products to ``wanted`` if they stay true float32 here, else to ``highest``.

    On CPUs without AMX, ``medium`` only picks a faster kernel; on others it computes in bfloat16
    (performance study, section 0). Returns what was set and the measured relative error.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = (a.double() @ b.double()).float()
    torch.set_float32_matmul_precision(wanted)
    error = float(((a @ b) - exact).norm() / exact.norm())
    if error < 1e-5:
        return wanted, error
    torch.set_float32_matmul_precision("highest")
    return "highest", error


def _hf_config(config: Mapping[str, Any]) -> Any:
    values = {
        key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")
    }
    return transformers.AutoConfig.for_model(config["model_type"], **values)


def _hollow(config: Mapping[str, Any], dtype: torch.dtype, attention: str | None, folder: Path) -> Any:
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


def _rendered(text: str, asking: Asking) -> str:
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


def _prefix(bos: int | None, form: PromptForm | None) -> list[int]:
    if form is None:
        return [] if bos is None else [bos]
    if form.bos and bos is None:
        raise ModelError("prompts should begin with BOS, and config.json names no bos_token_id")
    return [bos] if form.bos and bos is not None else []


def _adapted(network: nn.Module) -> dict[str, Any]:
    """Name -> base layer of every layer that has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: layer.get_base_layer()
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def _attention(hf_config: Any) -> str:
    # Gemma-2 caps its attention scores, which only the eager kernel honours on CPU.
    return "eager" if getattr(hf_config, "attn_logit_softcapping", None) else "sdpa"


def _with_adapter(network: Any, lora: LoraOptions, seed: int) -> Any:
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


def _adapter(network: Any, name: str) -> State:
    """Parameters of one adapter, by names that do not hold the adapter's name."""
    return {
        key.replace(f".{name}.", "."): value
        for key, value in network.state_dict(keep_vars=True).items()
        if "lora_" in key and f".{name}." in key
    }


def _freeze(network: Any, name: str) -> None:
    for key, parameter in network.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.requires_grad_(False)


def _copy(state: Mapping[str, Tensor]) -> State:
    """Copies in host memory, in rows as they are stored, wherever the originals are."""
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
