"""Shapes of the four decoder classes of the paper's models, and what follows from them: counts, config.json.

One formula serves all four, since they differ in biases, in norms and in whether the embedding is the head;
a test compares it with what transformers builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lada.config import Options, Positive
from lada.errors import ConfigError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear maps of a layer, by the names that all four classes give them."""
_Above = Annotated[float, Field(gt=0)]


class Architecture(Options):
    """Shapes and features of a decoder (Gemma-2, Llama, Qwen2 or Qwen3).

    Attributes:
        hidden_size, intermediate_size: H and I, widths of the residual stream and of the MLP.
        num_layers, num_heads, num_kv_heads, head_dim: L, and the attention's.
        vocab_size: V, rows of the embedding, padding included.
        max_positions: longest sequence.
        tied_embeddings: the output projection is the embedding.
        qkv_bias: queries, keys and values have a bias (Qwen2).
        qk_norm: queries and keys are normalised per head (Qwen3).
        sandwich_norms: attention and MLP are normalised after as well as before (Gemma-2).
        activation: of the MLP.
        final_softcap, attention_softcap: caps of logits and of attention scores (Gemma-2).
        query_scalar: attention scores are divided by its root; None: by that of ``head_dim``.
        sliding_window: of every other layer (Gemma-2).
        norm_eps, rope_theta, rope_scaling: of the norms and of the positions.
    """

    hidden_size: Positive
    intermediate_size: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    max_positions: Positive
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    final_softcap: _Above | None = None
    attention_softcap: _Above | None = None
    query_scalar: Positive | None = None
    sliding_window: Positive | None = None
    norm_eps: _Above
    rope_theta: _Above
    rope_scaling: dict[str, Any] | None = None

    @property
    def query_size(self) -> int:
        """Width of all queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys; of all values too."""
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear maps of one layer: name -> (outputs, inputs)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (self.query_size, hidden),
            "k_proj": (self.kv_size, hidden),
            "v_proj": (self.kv_size, hidden),
            "o_proj": (hidden, self.query_size),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of one layer's linear maps: what a token is multiplied with."""
        return sum(outputs * inputs for outputs, inputs in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        norms = (4 if self.sandwich_norms else 2) * self.hidden_size
        heads = 2 * self.head_dim if self.qk_norm else 0
        biases = self.query_size + 2 * self.kv_size if self.qkv_bias else 0
        return self.linear_parameters + norms + heads + biases

    @property
    def head_parameters(self) -> int:
        """V * H: of the embedding, and of the output projection where it is one of its own."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        ends = self.head_parameters * (1 if self.tied_embeddings else 2)
        return ends + self.num_layers * self.layer_parameters + self.hidden_size

    def lora_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of a LoRA adapter of this rank on the named linear maps of all layers.

        Raises:
            ConfigError: a name that no layer has; lists the legal ones.
        """
        shapes = self.linears
        for name in targets:
            if name not in shapes:
                raise ConfigError(f"lora.targets: no linear map '{name}'; legal: {', '.join(shapes)}")
        return self.num_layers * rank * sum(sum(shapes[name]) for name in targets)

    def config_json(self, model_type: str) -> dict[str, Any]:
        """The shapes by the names of config.json, for the transformers class ``model_type``."""
        content: dict[str, Any] = {
            "model_type": model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied_embeddings,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                **(self.rope_scaling or {}),
                "rope_theta": self.rope_theta,
            },
        }
        optional = {
            "final_logit_softcapping": self.final_softcap,
            "attn_logit_softcapping": self.attention_softcap,
            "query_pre_attn_scalar": self.query_scalar,
            "sliding_window": self.sliding_window,
        }
        name = "hidden_activation" if model_type == "gemma2" else "hidden_act"
        return {**content, name: self.activation} | {
            key: value for key, value in optional.items() if value is not None
        }
