"""The replay pool of the sample filter: what it has been taught, at most ``size`` samples of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

Key = tuple[int, str]
"""Round and sample id: a sample may be taught once a round."""


@dataclass(frozen=True)
class Entry:
    """One taught sample, half precision where vectors are long.

    Attributes:
        features: [F] fp16, as ExploitNet saw them.
        activations: [blocks * width] fp16, ExploitNet's before it learned this sample.
        reward: the label.
        exploit: ExploitNet's prediction when the sample was selected.
    """

    key: Key
    features: Tensor
    activations: Tensor
    reward: float
    exploit: float


@dataclass(frozen=True)
class Batch:
    """Entries side by side, float32: features [B, F], activations [B, A], reward and exploit [B]."""

    features: Tensor
    activations: Tensor
    reward: Tensor
    exploit: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, index: Tensor) -> Batch:
        """The rows at ``index``."""
        return Batch(self.features[index], self.activations[index], self.reward[index], self.exploit[index])


def stack(entries: Sequence[Entry]) -> Batch:
    """At least one entry as a batch."""
    return Batch(
        torch.stack([entry.features for entry in entries]).float(),
        torch.stack([entry.activations for entry in entries]).float(),
        torch.tensor([entry.reward for entry in entries], dtype=torch.float32),
        torch.tensor([entry.exploit for entry in entries], dtype=torch.float32),
    )


class ReplayPool:
    """Entries with reservoir replacement: when full, each entry ever added is kept with equal chance.

    Args:
        size: most entries held.
        generator: draws the place of an entry; shared with the filter.
    """

    def __init__(self, size: int, generator: Generator) -> None:
        self.size, self.generator = size, generator
        self.entries: list[Entry] = []
        self.seen = 0
        self._places: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: Entry) -> bool:
        """Take an entry in, in place of one with its key if there is one; False where it found no place."""
        place = self._places.get(entry.key)
        if place is None:
            self.seen += 1
            place = len(self.entries)
            if place == self.size:
                place = int(torch.randint(self.seen, (1,), generator=self.generator))
        if place >= self.size:
            return False
        if place == len(self.entries):
            self.entries.append(entry)
        else:
            del self._places[self.entries[place].key]
            self.entries[place] = entry
        self._places[entry.key] = place
        return True

    def find(self, key: Key) -> Entry | None:
        """The entry with a key, if the pool holds it."""
        place = self._places.get(key)
        return None if place is None else self.entries[place]

    def relabel(self, key: Key, reward: float) -> bool:
        """Give an entry its late reward; False where the pool does not hold it any more."""
        place = self._places.get(key)
        if place is None:
            return False
        self.entries[place] = replace(self.entries[place], reward=reward)
        return True

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors; keys as JSON bytes."""
        keys = json.dumps([entry.key for entry in self.entries]).encode()
        found = {
            "keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8),
            "seen": torch.tensor([self.seen], dtype=torch.int64),
            "reward": torch.tensor([entry.reward for entry in self.entries], dtype=torch.float64),
            "exploit": torch.tensor([entry.exploit for entry in self.entries], dtype=torch.float64),
        }
        if self.entries:
            found["features"] = torch.stack([entry.features for entry in self.entries])
            found["activations"] = torch.stack([entry.activations for entry in self.entries])
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state` back."""
        keys: list[Key] = [(number, name) for number, name in json.loads(bytes(state["keys"].tolist()))]
        self.seen = int(state["seen"])
        rewards, exploits = state["reward"].tolist(), state["exploit"].tolist()
        self.entries = [
            Entry(key, state["features"][i].clone(), state["activations"][i].clone(), rewards[i], exploits[i])
            for i, key in enumerate(keys)
        ]
        self._places = {key: i for i, key in enumerate(keys)}
