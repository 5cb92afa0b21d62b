"""The layers of a `QuantCache`: those of Transformers' caches, with codes in place of keys and values.

Transformers asks a layer for few things: take new states and return all, how long it is, and the changes that
beam search, assisted decoding and batches make (reorder, crop, repeat, select). Each is a change of which
tokens are held, which `PackedStates` makes on the codes as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from razor.errors import RazorError
from razor.models.packed_states import PackedStates
from razor.quant import Format

_MARK = "_razor_from_quant_cache"


def is_from_quant_cache(states: Tensor) -> bool:
    """Whether this very tensor was handed out by a layer of a `QuantCache`."""
    return getattr(states, _MARK, False)


class StoredLayer(CacheLayerMixin):
    """What the layers of a `QuantCache` have in common: codes in place of `keys` and `values`."""

    def __init__(self, format: Format, **options: Any) -> None:
        super().__init__(**options)
        self.format = format
        self.states: tuple[PackedStates, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Prepare for states of this dtype and width on this device."""
        for states in (key_states, value_states):
            self.format.check_tokens(states.shape[-1], "QuantCache")
        self.dtype, self.device = key_states.dtype, key_states.device
        self.states = (PackedStates(self.format), PackedStates(self.format))
        self.is_initialized = True

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise RazorError(
                "QuantCache stores codes, through which no gradient flows: run the model without a cache, or "
                "under torch.no_grad()."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for states, new in zip(self.states, (key_states, value_states), strict=True):
            states.append(new)

    def _decoded(self, last: int | None = None) -> tuple[Tensor, Tensor]:
        keys, values = (states.decode(self.dtype, last) for states in self.states)
        for tensor in (keys, values):
            setattr(tensor, _MARK, True)
        return keys, values

    def reset(self) -> None:
        """Forget everything."""
        self.states, self.is_initialized = (), False
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows of the batch, in this order (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for states in self.states:
            states.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        for states in self.states:
            states.repeat(repeats)


class FullLayer(StoredLayer, DynamicLayer):
    """All tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new states [B, heads, new, head_dim]; return all so far, decoded."""
        self._append(key_states, value_states)
        return self._decoded()

    def get_seq_length(self) -> int:
        """Tokens held."""
        return len(self.states[0]) if self.states else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop({tokens_to_remove})`: give the number of tokens to remove as a negative one."
            )
        for states in self.states:
            states.drop_last(-tokens_to_remove)


class SlidingLayer(StoredLayer, DynamicSlidingWindowLayer):
    """The last `sliding_window - 1` tokens; more only while `record_past` says that some may be taken back."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new states [B, heads, new, head_dim]; return them and the window before them, decoded."""
        self._append(key_states, value_states)
        new = key_states.shape[-2]
        self.cumulative_length += new
        decoded = self._decoded(last=self.sliding_window - 1 + new)
        if not self.record_past:
            self._keep_window()
        return decoded

    def _keep_window(self) -> None:
        for states in self.states:
            states.keep_last(self.sliding_window - 1)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, then what lies before the window."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop({tokens_to_remove})`: give the number of tokens to remove as a negative one."
            )
        if self.cumulative_length >= self.sliding_window and not self.record_past:
            raise RuntimeError(
                "The window has moved on and what it left behind is gone: call `activate_past_recording` on the "
                "cache before tokens that may be cropped."
            )
        for states in self.states:
            states.drop_last(-tokens_to_remove)
        self.cumulative_length = max(self.cumulative_length + tokens_to_remove, 0)
        self._keep_window()


def stored_layer(layer: Any, format: Format) -> Any:
    """The layer of a `QuantCache` in place of a layer of a plain cache."""
    if type(layer) is DynamicLayer:
        return FullLayer(format)
    if type(layer) is DynamicSlidingWindowLayer:
        return SlidingLayer(format, sliding_window=layer.sliding_window)
    if type(layer) in (LinearAttentionLayer, DummyLayer):
        return layer
    raise RazorError(
        f"QuantCache cannot hold a layer that Transformers caches as {type(layer).__name__}: use the model without "
        "it (past_key_values=DynamicCache(config=model.config)); keys and values are rounded all the same."
    )
