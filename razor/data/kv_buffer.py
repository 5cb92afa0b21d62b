"""A key-value cache whose memory is taken once.

Transformers' dynamic cache appends by concatenation: at every token the keys and values of all rows
and all positions are copied. Here they are written in place into buffers that are large enough from
the start, and attention reads views of the part that is filled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of `capacity` positions, written in place."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states [B, heads, new, head_dim]; return all so far as views of the buffers."""
        if not self._buffers:
            self.lazy_initialization(key_states, value_states)
            for states in (key_states, value_states):
                batch, heads, _, width = states.shape
                self._buffers.append(states.new_empty(batch, heads, self.capacity, width))
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)
        return self.keys, self.values

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; the same row may be named often."""
        self._buffers = [buffer.index_select(0, rows) for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)
