"""Weights from safetensors files, one or many, into a network that has none yet, without a second copy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lada.errors import ModelError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
_COMPUTED = ("rotary_emb.inv_freq",)
"""Ends of names that old checkpoints hold and a network computes for itself."""


@dataclass(frozen=True)
class Origin:
    """A model as it came: read again rather than kept.

    Attributes:
        folder: of its files.
        dtype: that its weights are given in.
    """

    folder: Path
    dtype: torch.dtype

    def tensors(self, wanted: Mapping[str, Any] | set[str]) -> Iterator[tuple[str, Tensor]]:
        """Name and weights on the CPU, one at a time, of those in ``wanted``."""
        for name, tensor in read_weights(self.folder):
            if name in wanted:
                yield name, tensor.to(self.dtype)


def weight_map(folder: Path) -> dict[str, Path]:
    """Name of a tensor -> the file that holds it.

    Raises:
        ModelError: there are no weights, a file that the index names is missing, or one cannot be read.
    """
    if (folder / ONE).is_file():
        return dict.fromkeys(_names(folder / ONE), folder / ONE)
    index = folder / INDEX
    if not index.is_file():
        raise ModelError(f"{folder} has no {ONE} and no {INDEX}; for lab models run `make lab-models`")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): folder / file for name, file in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no list of weights: {error!r}") from error
    missing = sorted({path.name for path in found.values() if not path.is_file()})
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} file(s) that {INDEX} names, e.g. {missing[0]}")
    there = {name: path for path in sorted(set(found.values())) for name in _names(path)}
    for name, path in found.items():
        if there.get(name) != path:
            raise ModelError(f"{path} does not hold '{name}', which {INDEX} says it does")
    return there


def read_weights(folder: Path, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder, file by file, one at a time; those that a network computes are left out.

    Raises:
        ModelError: see `weight_map`.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name, path in weight_map(folder).items():
        if not name.endswith(_COMPUTED):
            by_file[path].append(name)
    for path, names in by_file.items():
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            for name in names:
                yield name, file.get_tensor(name)


def fill(
    network: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tied: bool,
    placed: Callable[[nn.Parameter], None] | None = None,
) -> None:
    """Put a folder's weights into a network whose parameters are on the meta device.

    Args:
        dtype: of the network's weights, whatever the file's.
        tied: the head is the embedding; a head of its own in the files is then left out.
        placed: called with each parameter as soon as it has its content.

    Raises:
        ModelError: names or shapes do not fit; names some that do not.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    there = {name for name in weight_map(folder) if not name.endswith(_COMPUTED)}
    head = {"lm_head.weight"} if tied else set()
    missing, unexpected = sorted(own.keys() - there - head), sorted(there - own.keys() - head)
    if missing or unexpected:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: "
            f"missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    for name, tensor in read_weights(folder, device):
        if name in head:
            continue
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"the weights in {folder} do not fit its config.json: '{name}' has shape "
                f"{tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            )
        owner, _, last = name.rpartition(".")
        # A copy of its own: what is mapped from a file is not aligned as a kernel likes it.
        value = torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
        parameter = nn.Parameter(value, own[name].requires_grad)
        setattr(network.get_submodule(owner), last, parameter)
        if placed is not None:
            placed(parameter)


def _names(path: Path) -> list[str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error


def _some(names: list[str]) -> str:
    return f"{names[:3]}{' …' if len(names) > 3 else ''}"
