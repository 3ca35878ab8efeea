"""A causal language model with what LaDa needs of it.

`LanguageModel` hides three differences: full fine-tuning or LoRA, which policy is the reference, and how an
architecture names its body and head.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lada.asking import PLAIN, Asking, end_id
from lada.config import LoraOptions, PromptForm
from lada.errors import ModelError
from lada.models import adapted_layers, adapter_parameters, freeze_adapter, rendered, with_adapter
from lada.ranks import ALONE, Ranks
from lada.weights import Origin
from lada.zero import whole

State = dict[str, Tensor]
T = TypeVar("T")


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
        self.network: Any = with_adapter(network, lora, seed) if lora else network
        self._reference: State | None = None
        self._origin = origin
        self._initial = None if lora or origin else self.state()

    # -- text <-> ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a prompt, with BOS where the model has one, as a turn of a chat where it is asked in one."""
        asking = self._asking
        if asking.is_chat and asking.form is not None:
            text = rendered(text, asking)
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
            return adapter_parameters(self.network, adapter)
        whole: State = self._base.state_dict(keep_vars=True)
        if self.hf_config.tie_word_embeddings:
            whole = {key: value for key, value in whole.items() if key != "lm_head.weight"}
        return whole


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().contiguous().cpu()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _prefix(bos: int | None, form: PromptForm | None) -> list[int]:
    if form is None:
        return [] if bos is None else [bos]
    if form.bos and bos is None:
        raise ModelError("prompts should begin with BOS, and config.json names no bos_token_id")
    return [bos] if form.bos and bos is not None else []


def _copy(state: Mapping[str, Tensor]) -> State:
    """Copies in host memory, in rows as they are stored, wherever the originals are."""
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}


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
        freeze_adapter(model.network, "ref")
    else:
        model.network.base_model.enable_adapter_layers()


def _merge(model: LanguageModel) -> None:
    model.unmerged = _copy({name: layer.weight for name, layer in adapted_layers(model.base).items()})
    model.network.merge_adapter(["default"])


def _unmerge(model: LanguageModel) -> None:
    model.network.unmerge_adapter()
    with torch.no_grad():
        for name, layer in adapted_layers(model.base).items():
            layer.weight.copy_(model.unmerged[name])
    model.unmerged = {}
