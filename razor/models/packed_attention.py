"""Attention over packed documents without what the mask throws away.

A row of packed documents needs a mask of T x T, and SDPA on a CPU computes all of it, hidden or not: other
documents, and (in short rows) the future. Here each document attends by itself (`document_attention`): the same
sums, the same precision, and the more documents the less work.

It is used where it is certain to be the same: plain SDPA on a CPU, one pass without a cache, and a mask that says
exactly what the documents say. Anything else, a sliding window, a soft cap, another mask, runs as it would have; so
does a layer under gradient checkpointing, which runs once more when the pass is over, and a compiled one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from razor.distill import Batch
from razor.models.document_attention import Span, document_attention
from razor.models.intercepted import (
    Attention,
    implementation,
    intercepted,
    is_checkpointed,
    is_compiled,
    reachable_attention,
)

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
        starts[:, 0] = True
        self.shape, numbers = batch.input_ids.shape, starts.cumsum(1)
        self.spans = _spans(starts)
        same = numbers.unsqueeze(2) == numbers.unsqueeze(1)
        self.mask = same.tril().unsqueeze(1)
        self._checked: Tensor | None = None

    def wrap(self, own: Attention) -> Attention:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any
        ) -> Any:
            if not self._fits(module, query, key, value, mask, options):
                return own(module, query, key, value, mask, **options)
            return self.attend(query, key, value, options.get("scaling")), None

        return attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """[B, T, heads, head_dim] from [B, heads, T, head_dim], and keys and values with their own heads."""
        return document_attention(query, key, value, self.spans, scale)

    def _fits(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> bool:
        """Whether these inputs are the batch's rows under the documents' own mask."""
        window = options.get("sliding_window")
        return (
            query.shape[2] == key.shape[2] == self.shape[1]
            and len(query) == self.shape[0]
            and key.shape == value.shape
            and query.dtype == key.dtype == value.dtype
            and not options.get("dropout")
            and (window is None or window >= self.shape[1])
            and all(options.get(name) in allowed for name, allowed in PLAIN.items())
            and getattr(module, "is_causal", True)
            and self._is_ours(mask)
        )

    def _is_ours(self, mask: Tensor | None) -> bool:
        if mask is None:  # plain causal attention over whole rows
            return all((start, end) == (0, self.shape[1]) for _, start, end in self.spans)
        if mask is not self._checked:  # one mask serves all layers of a pass
            if mask.dtype != torch.bool or mask.shape != self.mask.shape or not torch.equal(mask, self.mask):
                return False
            self._checked = mask
        return True


def _spans(starts: Tensor) -> list[Span]:
    """The documents of each row; padding is one more. Rows that are cut alike are taken together."""
    rows = []
    for row in starts:
        first = row.nonzero().flatten().tolist()
        rows.append(list(zip(first, [*first[1:], len(row)], strict=True)))
    if all(row == rows[0] for row in rows):
        return [Span(slice(None), start, end) for start, end in rows[0]]
    return [Span(slice(i, i + 1), start, end) for i, row in enumerate(rows) for start, end in row]
