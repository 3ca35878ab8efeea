"""Bytes that a party's model takes on each GPU while it trains and while it generates.

What autograd keeps of a layer was counted with saved-tensor hooks on transformers' and peft's own modules; a
test counts again. ZeRO-1 shares the optimiser's states among the ranks, ZeRO-2 gradients too, ZeRO-3 weights
too, which every pass then gathers layer by layer. Units: bytes; GB are 10^9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.assumptions import Planning
from lada.architecture import Architecture
from lada.config import LoraOptions
from lada.model_facts import ModelFacts

Zero = Literal[0, 1, 2, 3]
GB = 1e9
BF16, FP32 = 2, 4
BUCKET = 500_000_000
"""Elements of DeepSpeed's default communication buckets."""
SUB_GROUP = 1_000_000_000
"""Elements that ZeRO-3's optimiser steps at a time, by default."""


@dataclass(frozen=True)
class Setup:
    """A party's model, how it is trained, and where.

    Attributes:
        lora: None for full fine-tuning.
        keeps_reference: a second adapter stands beside the trained one (clients).
        ranks: processes in all, a GPU each.
        nodes: that they lie on.
        checkpointing: activations of a layer are computed again in the backward pass.
        micro_tokens, head_chunk: see `TrainOptions`, `Numerics`.
        rows: decoded side by side, by each rank.
        longest_response: of some hundred responses, by their mean.
        longest_prompt, max_new_tokens: in tokens.
        responses: most texts of one training example.
        prompt_tokens: most prompt tokens that are read at a time; None: all rows' prompts.
    """

    facts: ModelFacts
    lora: LoraOptions | None
    keeps_reference: bool
    ranks: int
    zero: Zero
    checkpointing: bool
    micro_tokens: int
    head_chunk: int
    rows: int
    longest_prompt: int
    max_new_tokens: int
    responses: int
    planning: Planning
    prompt_tokens: int | None = None
    nodes: int = 1
    longest_response: float = 2.4

    @property
    def shape(self) -> Architecture:
        """Shapes of the model."""
        return self.facts.architecture

    @property
    def trained(self) -> int:
        """Parameters that training changes."""
        if self.lora is None:
            return self.shape.parameters
        return self.shape.lora_parameters(self.lora.rank, self.lora.targets)

    @property
    def weight_bytes(self) -> float:
        """Of the whole model in bf16."""
        return BF16 * self.shape.parameters

    @property
    def adapter_bytes(self) -> int:
        """Of its adapters in float32, the reference among them."""
        return 0 if self.lora is None else FP32 * self.trained * (2 if self.keeps_reference else 1)

    @property
    def shards(self) -> bool:
        """Whether each rank holds a share of the weights and every pass gathers them."""
        return self.zero == 3 and self.ranks > 1

    @property
    def link_gbs(self) -> float:
        """10^9 bytes/s at which a rank gathers what others hold."""
        gpu = self.planning.accelerator
        return gpu.link_gbs if self.nodes == 1 else min(gpu.link_gbs, gpu.node_link_gbs)

    @property
    def kv_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        return 2 * BF16 * self.shape.kv_size * self.shape.num_layers

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.longest_prompt + self.max_new_tokens

    @property
    def room_gb(self) -> float:
        """GB of a GPU that the model may take."""
        gpu = self.planning.accelerator
        return gpu.memory_gb - gpu.reserve_gb


@dataclass(frozen=True)
class Footprint:
    """What is on each GPU at the peak.

    Attributes:
        kind: of work.
        parts: name -> GB.
        room_gb: what there is.
    """

    kind: Literal["training", "generation"]
    parts: dict[str, float]
    room_gb: float

    @property
    def gb(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is room for them."""
        return self.gb <= self.room_gb


def training_footprint(setup: Setup) -> Footprint:
    """The peak of a training step on each rank (GB).

    Full fine-tuning: weights in bf16, master weights and Adam's two moments in float32, gradients in float32
    where DeepSpeed adds them up, else in bf16. LoRA: frozen weights in bf16, the adapter and all that belongs
    to it in float32, under DeepSpeed with a copy. Choice: what a party keeps beside its weights to come back
    to (reference and first weights in full fine-tuning) lies in host memory.
    """
    n, zero, trained = setup.ranks, setup.zero, setup.trained
    deepspeed = n > 1 and zero >= 1
    own = BF16 if setup.lora is None else FP32
    gradient = FP32 if deepspeed else own
    states = trained * (3 if setup.lora is None or deepspeed else 2) * FP32
    parts = {
        "weights": (setup.weight_bytes + setup.adapter_bytes) / (n if zero >= 3 else 1),
        "gradients": trained * gradient / (n if zero >= 2 else 1),
        "optimiser": states / (n if zero >= 1 else 1),
        "activations": activation_bytes(setup),
        "logits": logit_bytes(setup),
        "step": _step_bytes(setup),
        "gathered": gathered_bytes(setup),
        # Two buckets that are filled in turn; one is sent in float32.
        "buckets": (2.0 * own + (FP32 - own)) * min(trained, BUCKET) if deepspeed else 0,
    }
    return _footprint("training", parts, setup)


def generation_footprint(setup: Setup) -> Footprint:
    """The peak of decoding on each rank (GB), the training states gone.

    Each rank answers its share of the prompts, in rows and a cache of its own. Under ZeRO-3 it holds its
    share of the weights and what a pass has gathered, else all of them, the adapter merged into them.
    """
    shape, columns = setup.shape, setup.longest + 64
    read = setup.rows * setup.longest_prompt  # the first admission reads a prompt in every row …
    if setup.prompt_tokens is not None:  # … or as many as are read at a time, at least one
        read = min(read, max(setup.prompt_tokens, setup.longest_prompt))
    scores = shape.num_heads * setup.longest_prompt * (BF16 + FP32) if setup.facts.attention == "eager" else 0
    widest = BF16 * (3 * shape.intermediate_size + 4 * shape.hidden_size + 2 * shape.query_size)
    # The eager kernel copies a layer's keys and values for as many heads as queries have.
    copied = 2 * BF16 * shape.query_size if setup.facts.attention == "eager" else 0
    parts = {
        "weights": (setup.weight_bytes + setup.adapter_bytes) / (setup.ranks if setup.shards else 1),
        "gathered": gathered_bytes(setup),
        "KV cache": setup.rows * (columns * setup.kv_bytes + setup.longest * copied),
        "prompts": read * (widest + scores + setup.kv_bytes),
        "logits": setup.rows * shape.vocab_size * (BF16 + 2 * FP32),
    }
    return _footprint("generation", parts, setup)


def kept_bytes(setup: Setup) -> int:
    """Bytes of one layer that autograd keeps per token of a bf16 forward pass.

    Counted, not derived: float32 copies in the norms, peft's float32 copy of every adapted map's input, what
    the attention kernel keeps. The eager kernel also keeps scores, so this grows with the sequence.
    """
    shape, lora = setup.shape, setup.lora is not None
    wide = 36 if shape.sandwich_norms else (28 if lora else 16)
    query, kv = (8, 4) if lora else (4, 4)
    if shape.qk_norm:
        query, kv = (12, 8) if lora else (10, 10)
    if setup.facts.attention == "eager":
        query, kv = (10 if lora else 8), 0
    kept = wide * shape.hidden_size + (10 if lora else 8) * shape.intermediate_size
    kept += query * shape.query_size + kv * shape.kv_size
    if setup.lora is not None:
        kept += FP32 * setup.lora.rank * len(setup.lora.targets)
    if setup.facts.attention == "eager":
        return kept + 8 * shape.num_heads * setup.longest
    return kept


def activation_bytes(setup: Setup) -> float:
    """Of one micro-batch: with checkpointing each layer's input and one layer whole, else all layers.

    Added: what the backward pass of one layer holds at a time (gradients of the MLP's three wide tensors and
    of the residual stream), and the ends of the decoder.
    """
    shape = setup.shape
    tokens = max(setup.micro_tokens, setup.responses * setup.longest)
    whole = kept_bytes(setup)
    inside = (
        BF16 * shape.hidden_size * shape.num_layers + whole
        if setup.checkpointing
        else (whole * shape.num_layers)
    )
    backward = BF16 * (4 * shape.intermediate_size + 4 * shape.hidden_size)
    ends = 12 * shape.hidden_size
    return float(tokens * (inside + backward + ends))


def logit_bytes(setup: Setup) -> float:
    """Of the chunked head: float32 logits, their exponentials and gradients of one chunk, and slopes."""
    shape = setup.shape
    chunk = 3 * FP32 * setup.head_chunk * shape.vocab_size
    slopes = 2 * BF16 * setup.micro_tokens * shape.hidden_size
    trained_head = FP32 * shape.head_parameters if setup.lora is None else 0
    return float(chunk + slopes + trained_head)


def _step_bytes(setup: Setup) -> float:
    """What a step of full fine-tuning holds beside the states: of a rank's share, ZeRO-3 of groups of it.

    Gradients in float32; AdamW is fused and needs no more.
    """
    if setup.lora is not None:
        return 0.0
    if setup.ranks == 1 or setup.zero == 0:
        return float(FP32 * setup.trained)
    share = setup.trained / setup.ranks
    return FP32 * (min(share, SUB_GROUP) if setup.zero == 3 else share)


def gathered_bytes(setup: Setup) -> float:
    """ZeRO-3: two layers and the head stand whole on every rank at a time."""
    if not setup.shards:
        return 0.0
    return float(BF16 * (2 * setup.shape.layer_parameters + setup.shape.head_parameters))


def _footprint(kind: Literal["training", "generation"], parts: dict[str, float], setup: Setup) -> Footprint:
    return Footprint(kind, {name: value / GB for name, value in parts.items() if value}, setup.room_gb)
