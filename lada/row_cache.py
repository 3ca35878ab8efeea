"""Key-value cache whose rows come and go while others are decoded.

All rows end at the same column; a row that is shorter than the longest begins later, and its mask hides the
columns before. So one write position serves all rows, and a new row needs one copy per layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_SLACK = 64
"""Columns beyond the longest row; when they are used up, everything moves to the first column."""


class RowCache:
    """Keys and values of every layer in buffers of fixed size.

    It has the methods that transformers' attention layers and mask builders call, and treats every layer as
    one of full attention: where a model has sliding windows (Gemma-2), the mask alone makes them.

    Args:
        max_rows: most rows at a time.
        max_columns: most tokens of one row.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, max_rows: int, max_columns: int) -> None:
        self._shape = (max_rows, max_columns + _SLACK)
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self.rows = 0
        self._start = self._end = 0

    # -- what transformers calls

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values [rows, heads, S, dim]; `advance` follows the last layer."""
        if layer_idx == len(self._buffers):
            self._buffers.append((self._allocate(keys), self._allocate(values)))
        end = self._end + keys.shape[2]
        own_keys, own_values = (buffer[: self.rows] for buffer in self._buffers[layer_idx])
        own_keys[:, :, self._end : end] = keys
        own_values[:, :, self._end : end] = values
        return own_keys[:, :, self._start : end], own_values[:, :, self._start : end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use."""
        return self._end - self._start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Column of the next token."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns after ``query_length`` more, and the first one's number."""
        return self.get_seq_length() + query_length, 0

    # -- what decoding calls

    def advance(self, columns: int) -> None:
        """Count columns that `update` wrote in all layers."""
        self._end += columns

    def trim(self, columns: int) -> None:
        """Drop columns that no row needs; the longest row has ``columns`` tokens. Makes room for one more."""
        self._start = self._end - columns
        if self._end == self._shape[1]:
            self._move(columns)

    def move_row(self, source: int, target: int) -> None:
        """Copy a row over another."""
        if source != target:
            for buffer in self._all_buffers():
                buffer[target, :, self._start : self._end] = buffer[source, :, self._start : self._end]

    def admit(self, other: RowCache) -> None:
        """Add the rows of another cache after the own ones."""
        columns = other.get_seq_length()
        if not self._buffers:
            self._buffers = [(self._allocate(k), self._allocate(v)) for k, v in other._buffers]
        if self._end < columns:
            self._move(columns)
        rows = slice(self.rows, self.rows + other.rows)
        for own, new in zip(self._all_buffers(), other._all_buffers(), strict=True):
            own[rows, :, self._end - columns : self._end] = new[: other.rows, :, other._start : other._end]
        self._start = min(self._start, self._end - columns) if self.rows else self._end - columns
        self.rows += other.rows

    # -- what a resume point holds

    def state(self) -> tuple[dict[str, Tensor], list[int]]:
        """What is in use of every buffer, and where it stands."""
        window = slice(self._start, self._end)
        used = [buffer[: self.rows, :, window] for buffer in self._all_buffers()]
        return {str(i): part for i, part in enumerate(used)}, [self.rows, self._start, self._end]

    def load(self, tensors: Mapping[str, Tensor], places: Sequence[int], device: torch.device) -> None:
        """Put a `state` back, column for column: moved, it could give other last bits."""
        self.rows, self._start, self._end = places
        parts = [tensors[str(i)].to(device) for i in range(len(tensors))]
        self._buffers = [
            (self._allocate(keys), self._allocate(values))
            for keys, values in zip(parts[::2], parts[1::2], strict=True)
        ]
        for buffer, part in zip(self._all_buffers(), parts, strict=True):
            buffer[: self.rows, :, self._start : self._end] = part

    def _move(self, end: int) -> None:
        """Move what is in use so that it ends at column ``end``."""
        columns = self._end - self._start
        for buffer in self._all_buffers():
            buffer[: self.rows, :, end - columns : end] = buffer[
                : self.rows, :, self._start : self._end
            ].clone()
        self._start, self._end = end - columns, end

    def _all_buffers(self) -> list[Tensor]:
        return [buffer for pair in self._buffers for buffer in pair]

    def _allocate(self, like: Tensor) -> Tensor:
        rows, columns = self._shape
        # Zeros, not empty: hidden columns are multiplied by 0, which leaves a stray NaN a NaN.
        return torch.zeros(rows, like.shape[1], columns, like.shape[3], dtype=like.dtype, device=like.device)
