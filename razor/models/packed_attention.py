"""Attention over packed documents without what the mask throws away.

A row of packed documents needs a mask of T x T, and SDPA on a CPU computes all of it, hidden or not: other
documents, and (in short rows) the future. Here each document is given to SDPA by itself, a piece of its queries at
a time with just the keys up to there. The same sums, the same precision, and the more documents the less work.

It is used where it is certain to be the same: plain SDPA on a CPU, one pass without a cache, and a mask that says
exactly what the documents say. Anything else, a sliding window, a soft cap, another mask, runs as it would have; so
does a layer under gradient checkpointing, which runs once more when the pass is over, and a compiled one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.distill import Batch
from razor.models.intercepted import (
    Attention,
    implementation,
    intercepted,
    is_checkpointed,
    is_compiled,
    reachable_attention,
)

PIECE = 256
"""Queries computed at once; smaller pieces make the backward pass slower."""

LONG = 768
"""From this length on a document is computed at once: SDPA itself then leaves the future out."""

PLAIN = {"is_causal": (None, True), "softcap": (None,), "s_aux": (None,), "position_bias": (None,)}
"""Options of attention that may be given, with the values at which they change nothing here."""


@contextmanager
def packed_attention(decoder: nn.Module, blocks: nn.ModuleList, batch: Batch) -> Iterator[None]:
    """While it is open, passes over `batch` attend piece by piece wherever that is the same.

    Args:
        decoder: what will run.
        blocks: its layers.
        batch: the rows that will be read, at once and without a cache.
    """
    with ExitStack() as stack:
        again = torch.is_grad_enabled() and is_checkpointed(decoder)
        if batch.input_ids.device.type == "cpu" and not again and not is_compiled(decoder):
            pieces = _Pieces(batch)
            for module in reachable_attention(blocks).values():
                if implementation(module) == "sdpa":
                    stack.enter_context(intercepted(module, pieces.wrap))
        yield


class _Pieces:
    """Documents of a batch as spans of its rows, and attention over them."""

    def __init__(self, batch: Batch) -> None:
        starts = batch.position_ids == 0
        self.shape, numbers = batch.input_ids.shape, starts.cumsum(1)
        self.rows = [_spans(row) for row in starts]
        same = numbers.unsqueeze(2) == numbers.unsqueeze(1)
        self.mask = same.tril().unsqueeze(1)
        self._checked: Tensor | None = None

    def wrap(self, own: Attention) -> Attention:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any
        ) -> Any:
            if not self._fits(module, query, key, mask, options):
                return own(module, query, key, value, mask, **options)
            return self.attend(query, key, value, options.get("scaling")), None

        return attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """[B, T, heads, head_dim] from [B, heads, T, head_dim], and keys and values with their own heads."""
        if all(spans == self.rows[0] for spans in self.rows):
            return self._row(query, key, value, self.rows[0], scale)
        rows = [
            self._row(query[i : i + 1], key[i : i + 1], value[i : i + 1], spans, scale)
            for i, spans in enumerate(self.rows)
        ]
        return torch.cat(rows)

    def _row(
        self, query: Tensor, key: Tensor, value: Tensor, spans: list[tuple[int, int]], scale: float | None
    ) -> Tensor:
        parts = []
        for start, end in spans:
            step = PIECE if end - start < LONG else end - start
            for first in range(start, end, step):
                last = min(first + step, end)
                mask = None if first == start else _triangle(last - first, last - start)
                part = F.scaled_dot_product_attention(
                    query[:, :, first:last],
                    key[:, :, start:last],
                    value[:, :, start:last],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scale,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
                parts.append(part.transpose(1, 2))
        return torch.cat(parts, 1)

    def _fits(
        self, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> bool:
        """Whether these inputs are the batch's rows under the documents' own mask."""
        window = options.get("sliding_window")
        return (
            query.shape[2] == key.shape[2] == self.shape[1]
            and len(query) == self.shape[0]
            and not options.get("dropout")
            and (window is None or window >= self.shape[1])
            and all(options.get(name) in allowed for name, allowed in PLAIN.items())
            and getattr(module, "is_causal", True)
            and self._is_ours(mask)
        )

    def _is_ours(self, mask: Tensor | None) -> bool:
        if mask is None:  # plain causal attention over whole rows
            return all(len(spans) == 1 for spans in self.rows)
        if mask is not self._checked:  # one mask serves all layers of a pass
            if mask.dtype != torch.bool or mask.shape != self.mask.shape or not torch.equal(mask, self.mask):
                return False
            self._checked = mask
        return True


def _spans(starts: Tensor) -> list[tuple[int, int]]:
    """[start, end) of each document of a row; padding is one more."""
    first = starts.nonzero().flatten().tolist()
    return list(zip(first, [*first[1:], len(starts)], strict=True))


@cache
def _triangle(queries: int, keys: int) -> Tensor:
    """[queries, keys] bool: the last `queries` of `keys` tokens, each seeing those up to itself."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
