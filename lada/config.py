"""One frozen, strict RunConfig: YAML layers -> run.yaml -> everything downstream reads only run.yaml.

Layers, later wins: configs/tiers < datasets < scenarios < methods < the command line (`--set a.b=c`).
An unknown key or a wrong type is an error that names the file, the key, the nearest legal name and the
legal values. Facts of a cluster never enter a RunConfig.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lada.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"

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
        micro_tokens: most padded tokens of one forward pass; decides memory and, in the last bits, numbers.
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
    """A weight delta above this is published as its hash alone."""
    max_file_bytes: Positive = 4 * 2**30
    max_line_bytes: Positive = 2**20
    max_items: Positive = 1_000_000


class Numerics(Options):
    """What can change the last bits of a number: part of run.yaml for this reason."""

    threads: Positive = 1
    matmul_precision: Literal["highest", "high", "medium"] = "medium"
    dtype: Literal["float32", "bfloat16"] = "float32"
    head_chunk: Positive = 256
    """Rows of logits that exist at a time."""


class RunConfig(Options):
    """Everything that decides a run's numbers. ``method`` holds ``name`` and the method's own options."""

    scenario: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    tier: Literal["lab", "paper"]
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


# -- YAML


_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key '{key}' stands twice, near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text, e.g. a dataset that is called 1e5."""


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: list(resolvers) for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """YAML to plain Python values.

    Raises:
        ConfigError: naming ``source`` and the place.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: when it is missing, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    return content


def shipped(kind: str, name: str, configs: Path = CONFIGS) -> Path:
    """Path of configs/<kind>/<name>.yaml; ``name`` may also be a path to a YAML file.

    Raises:
        ConfigError: listing what exists.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = configs / kind / f"{name}.yaml"
    if not path.is_file():
        legal = sorted(file.stem for file in (configs / kind).glob("*.yaml"))
        near = difflib.get_close_matches(name, legal, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"no configs/{kind}/{name}.yaml{hint} Legal: {', '.join(legal)}")
    return path


Layer = tuple[str, Mapping[str, Any]]


def layers(
    *,
    scenario: str,
    method: str,
    dataset: str,
    size: str,
    tier: str = "lab",
    settings: Iterable[str] = (),
    configs: Path = CONFIGS,
) -> list[Layer]:
    """The layers of a run, in order, each with the name that an error will give.

    Args:
        settings: ``a.b=c`` pairs of the command line; the value is YAML.
    """
    tier_file = shipped("tiers", tier, configs)
    base = read_yaml(tier_file)
    sizes = base.pop("sizes", {})
    if size not in sizes:
        raise ConfigError(f"{tier_file}: no size '{size}'; legal: {', '.join(sizes)}")
    found: list[Layer] = [(str(tier_file), {**base, "tier": tier, "size": size})]
    found.append((f"{tier_file} (sizes.{size})", sizes[size]))
    for kind, name in (("datasets", dataset), ("scenarios", scenario)):
        path = shipped(kind, name, configs)
        found.append((str(path), read_yaml(path)))
    named: dict[str, Any] = {"method": {"name": method}}
    found.append(("METHOD", named))
    method_file = configs / "methods" / f"{method}.yaml"
    if method_file.is_file():
        found.append((str(method_file), read_yaml(method_file)))
    found += [(f"SET {setting}", parse_setting(setting)) for setting in settings]
    return found


def parse_setting(setting: str) -> dict[str, Any]:
    """``a.b=c`` as a nested mapping.

    Raises:
        ConfigError: when there is no ``=`` or a key is empty.
    """
    key, equals, value = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"'{setting}' is not of the form key.subkey=value")
    nested: Any = parse_yaml(value, f"SET {setting}")
    for part in reversed(parts):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def merge(found: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers, later wins; also returns which layer each dotted key came from."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, content in found:
        _merge_into(merged, content, source, "", origins)
    return merged, origins


def _merge_into(
    target: dict[str, Any], content: Mapping[str, Any], source: str, prefix: str, origins: dict[str, str]
) -> None:
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        origins[dotted] = source
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge_into(target[key], value, source, f"{dotted}.", origins)
        elif isinstance(value, Mapping):
            target[key] = {}
            _merge_into(target[key], value, source, f"{dotted}.", origins)
        else:
            target[key] = value


M = TypeVar("M", bound=BaseModel)


def validate(
    model: type[M], content: Mapping[str, Any], origins: Mapping[str, str], *, prefix: str = ""
) -> M:
    """Validate merged content.

    Args:
        origins: dotted key -> layer, for the message.
        prefix: dotted key under which ``content`` stood, e.g. ``method.``.

    Raises:
        ConfigError: every mistake, each with file, key, nearest legal name and legal values.
    """
    try:
        # JSON mode: strict types, but a YAML list may become a tuple.
        return model.model_validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        found = [_explain(model, item, origins, prefix) for item in error.errors()]
    except (TypeError, ValueError):
        found = [
            f"{_origin(dotted, origins)}: key '{dotted}': {value!r:.80} is neither text nor a finite number"
            for dotted, value in _not_json(content, prefix)
        ]
    raise ConfigError("\n".join(found))


def _explain(model: type[BaseModel], item: Any, origins: Mapping[str, str], prefix: str) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = prefix + ".".join(location)
    source = _origin(dotted, origins)
    if item["type"] == "extra_forbidden":
        legal = _legal_names(model, location[:-1])
        near = difflib.get_close_matches(location[-1], legal, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{source}: unknown key '{dotted}'; {hint}legal keys here: {', '.join(legal)}"
    if item["type"] == "missing":
        return f"{source}: key '{dotted}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{source}: key '{dotted or 'run'}': {message} (found {item['input']!r:.80})"


def _not_json(content: Any, dotted: str) -> Iterator[tuple[str, Any]]:
    """Values and keys that JSON cannot hold, e.g. dates and NaN, with their places."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _not_json(value, f"{dotted}{key}.")
            if not isinstance(key, str | int | float | None):
                yield f"{dotted}{key}", key
    elif isinstance(content, list):
        for value in content:
            yield from _not_json(value, dotted)
    elif not isinstance(content, str | int | float | None) or (
        isinstance(content, float) and not math.isfinite(content)
    ):
        yield dotted.rstrip("."), content


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    while dotted and dotted not in origins:
        dotted = dotted.rpartition(".")[0]
    return origins.get(dotted, "configuration")


def _legal_names(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if models:
            model = models[0]
    return sorted(model.model_fields)


# -- run.yaml


def resolve(found: Iterable[Layer]) -> tuple[RunConfig, dict[str, str]]:
    """Layers to a RunConfig; also which layer each key came from.

    Raises:
        ConfigError: see `validate`.
    """
    merged, origins = merge(found)
    return validate(RunConfig, merged, origins), origins


def dump_run(config: RunConfig) -> str:
    """run.yaml: every default spelled out, keys in the order of RunConfig."""
    content = config.model_dump(mode="json")
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_run(run_dir: Path) -> RunConfig:
    """The RunConfig of a run folder.

    Raises:
        ConfigError: when run.yaml is missing or not what this version writes.
    """
    path = run_dir / "run.yaml"
    content = read_yaml(path)
    return validate(RunConfig, content, {key: str(path) for key in content})
