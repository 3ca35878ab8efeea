"""The schema of run.yaml: one frozen, strict RunConfig of all that decides a run's numbers.

Everything downstream of run.yaml reads this alone; `lada.layers` makes one of YAML files. Facts of a cluster
never enter it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lada.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PartyName = Annotated[str, Field(pattern=r"^(server|client-[1-9][0-9]?)$")]
SERVER = "server"
ORACLE = "oracle"
"""Value of a method's option that has the public questions' answers read; see `RunConfig.opens_answers`."""


class Options(BaseModel):
    """Base of all options: frozen, strict, unknown keys are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, strict=True, extra="forbid")


class PromptForm(Options):
    """How a model is asked.

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


class PartyOptions(Options):
    """A party and the model that it holds (Table I), by Hugging Face id.

    Options that are None are everybody's; in the paper tier a model's own (`lada.model_facts`) stand here.
    """

    name: PartyName
    model: str
    learning_rate: Rate | None = None
    """Overrides ``training.<role>.learning_rate`` for this party."""
    epochs: Positive | None = None
    """Overrides ``training.<role>.epochs`` for this party."""
    local_learning_rate: Rate | None = None
    """Overrides ``training.local.learning_rate``."""
    max_new_tokens: Positive | None = None
    """Overrides ``generation.max_new_tokens``."""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Overrides ``lora.targets``."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Overrides ``numerics.dtype``."""
    attention: Literal["eager", "sdpa"] | None = None
    """Attention kernel; None: ``eager`` where scores are capped, else ``sdpa``."""
    prompt: PromptForm | None = None
    """How the model is asked; None: plain text, with BOS where config.json names one."""


class DatasetOptions(Options):
    """Which questions. ``loader`` is a module of lada/data; ``file`` a local data file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    loader: str
    file: str | None = None
    split_seed: int | None = None
    """Seed of the split; None: the run's seed."""


class DataSizes(Options):
    """Sizes of a run's parts (paper, Section VI-A: 1,000 + 500 a client, 1,000 public)."""

    num_train: Positive
    num_test: Positive
    num_public: Positive


class LocalOptions(Options):
    """Local fine-tuning, the reference policy of each client (paper, Section IV-A).

    Choice: the target is the option's text and letter (``answer_only``), since local data has no reasoning;
    ``self_rationale`` trains on the client's own sampled rationales that reach the right letter.
    """

    target: Literal["answer_only", "self_rationale"] = "answer_only"
    num_samples: Positive = 4
    """Rationales drawn per question by ``self_rationale``: one greedy, the rest at ``temperature``."""
    temperature: Annotated[float, Field(gt=0)] = 0.8


class TrainOptions(Options):
    """One optimiser: AdamW, a fixed rate within a round, gradient norm clipped.

    Attributes:
        learning_rate: of round 1; round t uses ``learning_rate * decay ** (t - 1)``.
        epochs: passes over the examples; ``max_steps`` fixes the number of steps instead.
        batch_size: examples (preference pairs) of one optimiser step, all micro-batches together.
        micro_tokens: most tokens of a micro-batch of more than one sample; where ranks share the weights,
            with its padding. Decides memory and, in the last bits, numbers.
    """

    learning_rate: Rate
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    epochs: Positive = 1
    batch_size: Positive = 8
    max_steps: Positive | None = None
    weight_decay: Rate = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_tokens: Positive = 4096


class RoleTraining(Options):
    """Optimiser options of the local step, and of the distillation steps by role."""

    local: TrainOptions
    client: TrainOptions
    server: TrainOptions


class GenerationOptions(Options):
    """Decoding. ``temperature`` 0 is greedy; ``batch_size`` is the number of rows decoded side by side."""

    max_new_tokens: Positive = 96
    temperature: Rate = 0.0
    batch_size: Positive = 64
    top_k: Positive | None = None
    """Sample from this many likeliest tokens alone; None: from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together hold this share of the probability."""
    stop_at_answer: bool = False
    """A response also ends by itself with its final answer line (see `answers.answer_line_end`)."""
    prompt_tokens: Positive | None = None
    """Most padded prompt tokens that are read at a time; None: all prompts of an admission."""

    LATER: ClassVar[dict[str, Any]] = {"stop_at_answer": False, "prompt_tokens": None}
    """Options that the first runs did not know, with their defaults; see `config_hash`."""


class LoraOptions(Options):
    """Low-rank adapters (peft) on the named linear layers."""

    rank: Positive = 8
    alpha: Positive = 16
    dropout: Fraction = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class ExchangeOptions(Options):
    """What parties publish beside texts and ids, and the largest message that a reader accepts."""

    publish_rewards: bool = True
    publish_adapters: bool = True
    publish_confidence: bool = False
    """The sender's token confidence in each response; an addition to the paper."""
    max_delta_bytes: Positive = 64 * 2**20
    """A weight delta of full fine-tuning above this is published as its hash alone."""
    max_file_bytes: Positive = 4 * 2**30
    """A larger file is refused by readers; so a larger adapter is published as its hash alone."""
    max_line_bytes: Positive = 2**20
    max_items: Positive = 1_000_000

    def most_published(self, *, adapter: bool) -> int:
        """Bytes above which an adapter, or a weight delta, is published as its hash alone."""
        return self.max_file_bytes if adapter else min(self.max_delta_bytes, self.max_file_bytes)


class Numerics(Options):
    """What can change the last bits of a number: part of run.yaml for this reason."""

    threads: Positive = 1
    matmul_precision: Literal["highest", "high", "medium"] = "medium"
    """Of float32 products: the fastest kernel up to this that stays float32; on a GPU always ``highest``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    head_chunk: Positive = 256
    """Rows of logits that exist at a time."""


class RunConfig(Options):
    """Everything that decides a run's numbers. ``method`` holds ``name`` and the method's own options."""

    scenario: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    tier: Literal["lab", "paper", "rehearsal"]
    size: str
    dataset: DatasetOptions
    shots: Literal[0, 1] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Annotated[int, Field(ge=1, le=99)]
    template: Literal["lab", "plain"]
    parties: tuple[PartyOptions, ...]
    method: dict[str, Any]
    data: DataSizes
    local: LocalOptions = LocalOptions()
    training: RoleTraining
    generation: GenerationOptions = GenerationOptions()
    lora: LoraOptions | None = None
    exchange: ExchangeOptions = ExchangeOptions()
    numerics: Numerics = Numerics()

    @field_validator("parties")
    @classmethod
    def _in_order(cls, parties: tuple[PartyOptions, ...]) -> tuple[PartyOptions, ...]:
        names = [party.name for party in parties]
        expected = [SERVER, *(f"client-{k}" for k in range(1, len(names)))]
        if len(names) < 2 or names != expected:
            raise ValueError(f"parties must be server, client-1, client-2, … in this order, not {names}")
        return parties

    @field_validator("method")
    @classmethod
    def _named(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name"), str):
            raise ValueError("method needs a name, e.g. {name: lada}")
        return method

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients, in order."""
        return tuple(party.name for party in self.parties if party.name != SERVER)

    def of_party(self, name: str) -> RunConfig:
        """The configuration as one party computes with it: its own options in place of everybody's.

        Its rate and epochs of distillation stay where they are, since they depend on the role.

        Raises:
            ConfigError: when the run has no such party.
        """
        own, changed = self.party(name), {}
        for section, values in (
            ("generation", {"max_new_tokens": own.max_new_tokens}),
            ("numerics", {"dtype": own.dtype}),
            ("lora", {"targets": own.lora_targets}),
        ):
            stated = {key: value for key, value in values.items() if value is not None}
            if stated and getattr(self, section) is not None:
                changed[section] = getattr(self, section).model_copy(update=stated)
        if own.local_learning_rate is not None:
            local = self.training.local.model_copy(update={"learning_rate": own.local_learning_rate})
            changed["training"] = self.training.model_copy(update={"local": local})
        return self.model_copy(update=changed) if changed else self

    def party(self, name: str) -> PartyOptions:
        """Options of one party.

        Raises:
            ConfigError: when the run has no such party.
        """
        for party in self.parties:
            if party.name == name:
                return party
        raise ConfigError(f"no party '{name}'; legal: {', '.join(p.name for p in self.parties)}")

    @property
    def opens_answers(self) -> bool:
        """Whether an option of the method is ``oracle``.

        Then, and only then, every party is given the public questions' answers.
        """
        return any(value == ORACLE for key, value in nested(self.method) if key not in ("name", "replay"))

    @property
    def method_label(self) -> str:
        """What results call the method: its name, whom it hosts, that answers were read where they were."""
        plugin = self.method.get("plugin", "none")
        label = self.method["name"] if plugin == "none" else f"{self.method['name']}+{plugin}"
        return f"{label}-{ORACLE}" if self.opens_answers else str(label)

    @property
    def replayed(self) -> str | None:
        """The run whose selections this run is given (an option ``replay`` of the method), if any."""
        found = [value for key, value in nested(self.method) if key == "replay" and value is not None]
        return str(found[0]) if found else None

    @property
    def run_id(self) -> str:
        """Readable label plus 8 hex digits of the resolved configuration's hash."""
        label = f"{self.scenario}-{self.method_label.replace('+', '-')}-{self.dataset.name}"
        return f"{label}-{self.shots}shot-s{self.seed}-{config_hash(self)[:8]}"


def nested(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of a mapping and of the mappings in it, with its value."""
    for key, value in content.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from nested(value)


LATER = ("local_learning_rate", "max_new_tokens", "lora_targets", "dtype", "attention", "prompt")
"""Options of a party that the first runs did not know."""


def config_hash(config: RunConfig) -> str:
    """sha256 of the canonical run.yaml content.

    Choice: options that came later count only where they are set, so that earlier runs keep their names.
    """
    content = config.model_dump(mode="json")
    for party in content["parties"]:
        for name in LATER:
            if party[name] is None:
                del party[name]
    for name, unset in GenerationOptions.LATER.items():
        if content["generation"][name] == unset:
            del content["generation"][name]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def derive_seed(run_seed: int, *parts: object) -> int:
    """A 63-bit seed for one purpose: sha256 over the run's seed and e.g. party, round, step, purpose."""
    text = "/".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
