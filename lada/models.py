"""The only importer of transformers and peft: a causal language model with what LaDa needs of it.

`LanguageModel` hides three differences: full fine-tuning or LoRA, which policy is the reference, and how an
architecture names its body and head.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lada.config import LoraOptions
from lada.errors import ModelError

transformers.logging.set_verbosity_error()

State = dict[str, Tensor]


class LanguageModel:
    """A causal language model, its tokenizer, and its frozen reference policy.

    Args:
        network: a transformers causal LM.
        tokenizer: a fast tokenizer (tokenizers.Tokenizer).
        lora: None for full fine-tuning, else the adapter's options.
        seed: initialises the adapter.

    Attributes:
        network: the module to train (a PeftModel with LoRA).
        eos_id, pad_id: token ids.
        head_weight: output projection [V, H].
        softcap: cap of the final logits (Gemma-2) or None.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Tokenizer,
        *,
        lora: LoraOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.hf_config = network.config
        self.tokenizer = tokenizer
        self.eos_id: int = _single(network.config.eos_token_id)
        pad = network.config.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad
        bos = network.config.bos_token_id
        self._prefix: list[int] = [] if bos is None else [bos]
        self.softcap: float | None = getattr(network.config, "final_logit_softcapping", None)
        self.lora = lora
        self._base = network
        self.network: Any = _with_adapter(network, lora, seed) if lora else network
        self._reference: State | None = None
        self._initial = None if lora else self.state()

    # -- text <-> ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a prompt, with BOS where the model has one."""
        return self._prefix + self.tokenizer.encode(text, add_special_tokens=False).ids

    def response_ids(self, text: str, *, finished: bool = True) -> list[int]:
        """Ids of a response, with EOS where it ended by itself (`finished`)."""
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
        return _copy(self._own("default"))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` back.

        Raises:
            ModelError: when keys or shapes are not this model's.
        """
        self._assign(state, "default")

    def set_reference(self, state: Mapping[str, Tensor]) -> None:
        """Fix the reference policy: with LoRA as a frozen second adapter ``ref``, else as weights.

        Never called on the server: its reference is the model as it came (method, section 1).
        """
        if self.lora is None:
            self._reference = _copy(state)
            return
        if "ref" not in self.network.peft_config:
            self.network.add_adapter("ref", self.network.peft_config["default"])
        self._assign(state, "ref")
        self.network.set_adapter("default")
        _freeze(self.network, "ref")

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, forward passes are the reference policy's: `set_reference`'s, else the base model's."""
        if self.lora is not None and "ref" in self.network.peft_config:
            self.network.set_adapter("ref")
            try:
                yield
            finally:
                self.network.set_adapter("default")
                _freeze(self.network, "ref")
        elif self.lora is not None:
            with self.network.disable_adapter():
                yield
        else:
            now = self.state()
            self.load_state(self._reference if self._reference is not None else self._initial or {})
            try:
                yield
            finally:
                self.load_state(now)

    @contextlib.contextmanager
    def merged(self) -> Iterator[Any]:
        """Inside, the adapter is merged into the base weights; yields the plain causal LM.

        The base weights come back bit for bit afterwards: they are saved, not un-merged.
        """
        if self.lora is None:
            yield self._base
            return
        saved = _copy(self._base.state_dict())
        self.network.merge_adapter(["default"])
        try:
            yield self._base
        finally:
            self.network.unmerge_adapter()
            self._base.load_state_dict(saved)

    def delta(self) -> State:
        """What a party publishes: the adapter, or the difference of the weights to the model as it came."""
        if self.lora is not None or self._initial is None:
            return self.state()
        return {key: value - self._initial[key] for key, value in self.state().items()}

    def _own(self, adapter: str) -> State:
        """An adapter's parameters, or all weights, a head that is tied to the embeddings once."""
        if self.lora is not None:
            return _adapter(self.network, adapter)
        whole: State = self._base.state_dict()
        if self.hf_config.tie_word_embeddings:
            whole = {key: value for key, value in whole.items() if key != "lm_head.weight"}
        return whole

    def _assign(self, state: Mapping[str, Tensor], adapter: str) -> None:
        own = self._own(adapter)
        for key in own.keys() ^ state.keys():
            raise ModelError(f"weights do not fit the model: '{key}' is on one side only")
        with torch.no_grad():
            for key, value in own.items():
                if value.shape != state[key].shape:
                    raise ModelError(
                        f"weights do not fit the model: '{key}' has shape {tuple(state[key].shape)},"
                        f" expected {tuple(value.shape)}"
                    )
                value.copy_(state[key])


def build_network(config: Mapping[str, Any], *, seed: int, dtype: str = "float32") -> Any:
    """A causal LM from a transformers config with random weights.

    Args:
        config: the content of a config.json; ``model_type`` picks the class.
        seed: of the initial weights; torch's global generator is left as it was.
        dtype: of the weights.
    """
    values = {key: value for key, value in config.items() if key != "model_type"}
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(
            hf_config,
            dtype=getattr(torch, dtype),
            attn_implementation=_attention(hf_config),
        )
    return network.eval()


def load_model(
    folder: Path, *, dtype: str = "float32", lora: LoraOptions | None = None, seed: int = 0
) -> LanguageModel:
    """A model from a folder with config.json, tokenizer.json and model.safetensors.

    Raises:
        ModelError: when a file is missing or does not fit the others.
    """
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}; for lab models run `make lab-models`")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = build_network(config, seed=0, dtype=dtype)
    weights = load_file(folder / "model.safetensors")
    missing, unexpected = network.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    if unexpected or set(missing) - tied:
        raise ModelError(
            f"{folder}/model.safetensors does not fit config.json: "
            f"missing {sorted(set(missing) - tied)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return LanguageModel(network, tokenizer, lora=lora, seed=seed)


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
        for key, value in network.state_dict().items()
        if "lora_" in key and f".{name}." in key
    }


def _freeze(network: Any, name: str) -> None:
    for key, parameter in network.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.requires_grad_(False)


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().clone() for key, value in state.items()}


def _single(token_id: int | list[int]) -> int:
    return token_id[0] if isinstance(token_id, list) else token_id
