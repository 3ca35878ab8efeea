"""What a method is: a module in lada/methods/ with two names, ``Config`` and ``STEPS``.

``METHOD=foo`` imports ``lada/methods/foo.py``. There is no registry and methods never import each other.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

import lada.methods
from lada.config import Options, RunConfig
from lada.errors import ConfigError
from lada.layers import validate
from lada.manifest import Outbox
from lada.party import Party
from lada.plan import Plan, PlannedStep, Role

StepFunction = Callable[[Party], Outbox]


@dataclass(frozen=True)
class Step:
    """One step of a method.

    Args:
        name: a verb, e.g. ``respond``; unique within the steps of one configuration.
        server, client: what that role does; None: it does not take part.
        once: before round 1 instead of in every round.
        when: whether a configuration has this step at all.
    """

    name: str
    server: StepFunction | None = None
    client: StepFunction | None = None
    once: bool = False
    when: Callable[[Any], bool] = lambda options: True

    def function(self, role: Role) -> StepFunction:
        """What a role does in this step."""
        found = self.server if role == "server" else self.client
        assert found is not None, (self.name, role)
        return found

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that take part."""
        both: tuple[tuple[Role, StepFunction | None], ...] = (
            ("server", self.server),
            ("client", self.client),
        )
        return tuple(role for role, function in both if function is not None)


@dataclass(frozen=True)
class Method:
    """A method with its validated options."""

    name: str
    options: Options
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """The step of this name; the plan holds no other names."""
        return next(step for step in self.steps if step.name == name)


def method_names() -> list[str]:
    """Every method that can be named."""
    return sorted(module.name for module in pkgutil.iter_modules(lada.methods.__path__))


def load_method(choice: dict[str, Any], origins: dict[str, str] | None = None) -> Method:
    """Import a method and validate its options.

    Args:
        choice: ``{"name": ..., **options}`` as in run.yaml.
        origins: dotted key -> layer, for error messages.

    Raises:
        ConfigError: unknown method or option; lists the legal ones, options with defaults and meanings.
    """
    name = choice["name"]
    if name not in method_names():
        raise ConfigError(f"no method '{name}'; legal: {', '.join(method_names())}")
    module = importlib.import_module(f"lada.methods.{name}")
    given = {key: value for key, value in choice.items() if key != "name"}
    options = _options(name, module.Config, given, origins or {})
    steps = tuple(step for step in module.STEPS if step.when(options))
    return Method(name, options, steps)


def _options(name: str, kind: type[Options], given: dict[str, Any], origins: dict[str, str]) -> Options:
    try:
        return validate(kind, given, origins, prefix="method.")
    except ConfigError as error:
        if "unknown key" not in str(error):
            raise
        listed = "\n".join(_describe(kind, "method.")) or "    none"
        raise ConfigError(f"{error}\nOptions of {name}:\n{listed}") from error


def make_plan(config: RunConfig, method: Method) -> Plan:
    """The plan of a run: the method's steps with roles and barriers."""
    return Plan(
        run_id=config.run_id,
        method=method.name,
        rounds=config.rounds,
        parties=tuple(party.name for party in config.parties),
        steps=tuple(PlannedStep(name=step.name, roles=step.roles, once=step.once) for step in method.steps),
    )


def describe_methods() -> list[str]:
    """Every method with its purpose, and its options with defaults and meanings."""
    lines = []
    for name in method_names():
        module = importlib.import_module(f"lada.methods.{name}")
        lines.append(f"{name}: {(module.__doc__ or '').strip().splitlines()[0]}")
        lines += _describe(module.Config, "method.")
    return lines


def _describe(options: type[BaseModel], prefix: str) -> list[str]:
    meanings = " ".join((options.__doc__ or "").split())
    lines = []
    for name, field in options.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            lines += _describe(type(default), f"{prefix}{name}.")
            continue
        _, found, rest = meanings.partition(f" {name}: ")
        legal = _legal_values(field.annotation)
        first = re.split(r"(?<!\bEq)(?<!\bEqs)\. ", rest)[0].rstrip(".") if found else ""
        text = first or (f"one of {', '.join(legal)}" if legal else "")
        lines.append(f"    {prefix}{name}={default}  {text}".rstrip())
    return lines


def _legal_values(annotation: Any) -> list[str]:
    """The values of a Literal, also inside a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _legal_values(part)]
