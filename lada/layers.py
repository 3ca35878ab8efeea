"""YAML layers -> RunConfig -> run.yaml, and back.

Layers, later wins: configs/tiers < datasets < scenarios < methods < the command line (`--set a.b=c`).
An unknown key or a wrong type is an error that names the file, the key, the nearest legal name and the
legal values.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lada.config import RunConfig
from lada.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"

_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number, and a key that stands twice is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # it looks like a date or a number, and is none
            problem = f"'{node.value}' cannot be read ({error}); text stands in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

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
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8, which YAML is written in here") from error
    return _mapping(parse_yaml(text, str(path)), str(path))


def _mapping(content: Any, where: str) -> dict[str, Any]:
    """What is a mapping; anything else is an error that says where it stands."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values")
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
    sizes = _mapping(base.pop("sizes", {}), f"{tier_file}: key 'sizes'")
    if size not in sizes:
        raise ConfigError(f"{tier_file}: no size '{size}'; legal: {', '.join(map(str, sizes))}")
    found: list[Layer] = [(str(tier_file), {**base, "tier": tier, "size": size})]
    of_size = _mapping(sizes[size], f"{tier_file}: key 'sizes.{size}'")
    found.append((f"{tier_file} (sizes.{size})", of_size))
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
