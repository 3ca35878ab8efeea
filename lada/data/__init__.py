"""Datasets. A loader is a module here with one function, ``federation(request) -> Federation``.

A dataset's YAML (configs/datasets/) names its loader; a new dataset is one file here and one YAML there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lada.errors import ConfigError
from lada.records import Item


@dataclass(frozen=True)
class Request:
    """What a run asks of a loader.

    Attributes:
        dataset: e.g. ``lab-math`` or ``mathinstruct``.
        server: the server's model, by its name in Table I (e.g. ``Qwen/Qwen3-32B``).
        clients: party name -> model name, in order.
        num_train, num_test: items per client. num_public: shared questions.
        seed: decides the items and the split, nothing else does.
        file: local data file; None for generated datasets.
    """

    dataset: str
    server: str
    clients: Mapping[str, str]
    num_train: int
    num_test: int
    num_public: int
    seed: int
    file: Path | None = None


@dataclass(frozen=True)
class Federation:
    """The data of one run. Ids are unique over all parts; parts are disjoint by ``group``.

    Attributes:
        train: client -> items without rationale (paper, Section VI-A).
        test: client -> items.
        public: shared items; only their questions leave the host side, the rest is sealed.
        demo: the one-shot example: has a rationale, lies outside all parts.
        notes: counts and warnings for sealed/manifest.json (e.g. rows dropped by reason, sizes shrunk).
    """

    train: dict[str, list[Item]]
    test: dict[str, list[Item]]
    public: list[Item]
    demo: Item
    notes: dict[str, Any] = field(default_factory=dict)


def load_federation(loader: str, request: Request) -> Federation:
    """Import ``lada.data.<loader>`` and let it make the federation.

    Raises:
        ConfigError: when there is no such loader; lists the legal ones.
        DataError: when the file cannot serve the request.
    """
    legal = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if loader not in legal:
        raise ConfigError(f"dataset.loader '{loader}' does not exist; legal: {', '.join(legal)}")
    module = importlib.import_module(f"lada.data.{loader}")
    if not hasattr(module, "federation"):
        raise ConfigError(f"lada/data/{loader}.py has no function 'federation', so it is no loader")
    federation: Federation = module.federation(request)
    return federation
