"""Causal attention inside documents on a CPU, with a backward pass made of large products.

Forward is SDPA's own flash kernel, a piece of queries at a time with just the keys up to there. Its backward
kernel, though, takes three times as long as the five matrix products that it consists of, because it works on
blocks of a few dozen queries. So the gradient is written out here (FlashAttention, arXiv 2205.14135, appendix B.4):
with S = scale q k^T, P = exp(S - logsumexp S), and the delta of a row = its output . its gradient,

    dv = P^T do      dS = P * (do v^T - delta)      dq = scale dS k      dk = scale dS^T q

In 16 bits S - logsumexp and do v^T - delta are differences that products rounded to 16 bits would spoil. `baddbmm`
takes the row's number off while it still adds up in fp32, and rounds just the difference (the trick of
`distill/head.py`); what rounding the row's number itself lost is taken off afterwards. In bf16 gradients come
within 1 % of the exact ones; the kernel, which exponentiates in fp32, is up to three times nearer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 256
"""Queries given to the flash kernel at once."""

LONG = 768
"""From this length on it gets a whole document: it then leaves the future out by itself."""

BACK, KEYS = 128, 512
"""Queries, and keys, of one block of the backward pass."""


class Span(NamedTuple):
    """Tokens `start` to `end` of some rows: in each of them one document."""

    rows: slice
    start: int
    end: int


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float | None = None
) -> Tensor:
    """Attention of each document to itself, causal: [B, T, heads, head_dim].

    Args:
        query: [B, heads, T, head_dim], on a CPU.
        key: [B, KV heads, T, head_dim], of the same dtype.
        value: the same shape as `key`.
        spans: the documents; together they cover every row once.
        scale: of the scores; by default one over the root of head_dim.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _DocumentAttention.apply(query, key, value, spans, scale)
    return out


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float
    ) -> Tensor:
        # the dispatcher of SDPA sees to that, the kernel itself does not
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        rows, heads, tokens, width = query.shape
        out = query.new_empty(rows, tokens, heads, width)
        sums = torch.empty(rows, heads, tokens, dtype=_wide(query.dtype))
        for where, start, end in spans:
            for first, last in _steps(start, end, PIECE if end - start < LONG else end - start):
                found, summed = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query[where, :, first:last],
                    key[where, :, start:last],
                    value[where, :, start:last],
                    is_causal=first == start,
                    attn_mask=None if first == start else _past(first - start, last - first, query.dtype),
                    scale=scale,
                )
                out[where, first:last] = found.transpose(1, 2)
                sums[where, :, first:last] = summed
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)
        delta = (gradient.to(sums.dtype) * out.transpose(1, 2)).sum(-1)
        dq, dk, dv = (torch.zeros(x.shape, dtype=sums.dtype) for x in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            for rows, start, end in ctx.spans:
                part = slice(start, end)
                _differentiate(
                    ctx.scale,
                    *(x[rows, :, part] for x in (query, key, value, gradient, sums, delta)),
                    *(x[rows, :, part] for x in (dq, dk, dv)),
                )
        dq, dk = dq.mul_(ctx.scale), dk.mul_(ctx.scale)
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None


def _differentiate(
    scale: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    sums: Tensor,
    delta: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Add one document's gradients [B, (KV) heads, n, head_dim] to `dq` and `dk` (not yet scaled) and `dv`."""
    heads, length, share = key.shape[1], key.shape[2], query.shape[1] // key.shape[1]

    def grouped(rows: Tensor) -> Tensor:
        """[B * KV heads, queries' heads of each * n, ...]: heads that share keys are more rows of one product."""
        return rows.reshape(len(key) * heads, share * rows.shape[2], -1)

    keys, values = (x.reshape(len(key) * heads, length, -1) for x in (key, value))
    for first, last in _steps(0, length, BACK):
        q, do, total, dots = (grouped(x[:, :, first:last]) for x in (query, gradient, sums, delta))
        for start, end in _steps(0, last, KEYS):
            k, v = keys[:, start:end], values[:, start:end]
            p = _less(q, k, total, scale).exp_()
            if end > first:  # some of these keys are in the future of some of these queries
                p.view(-1, last - first, end - start).tril_(first - start)
            slope = _less(do, v, dots).mul_(p).to(q.dtype)
            _add(dv[:, :, start:end], torch.bmm(p.to(q.dtype).transpose(1, 2), do))
            _add(dk[:, :, start:end], torch.bmm(slope.transpose(1, 2), q))
            _add(dq[:, :, first:last], torch.bmm(slope, k))


def _less(left: Tensor, right: Tensor, rows: Tensor, scale: float = 1.0) -> Tensor:
    """`scale` `left` `right`^T - `rows`, in fp32 (or float64): [G, n, m] of [G, n, d], [G, m, d] and [G, n, 1]."""
    rounded = rows.to(left.dtype)
    product = torch.baddbmm(
        rounded.expand(-1, -1, right.shape[1]), left, right.transpose(1, 2), beta=-1, alpha=scale
    )
    return product if rounded.dtype == rows.dtype else product.to(rows.dtype).sub_(rows - rounded)


def _add(total: Tensor, part: Tensor) -> None:
    total += part.view(total.shape)


def _steps(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, end)) for first in range(start, end, size))


@cache
def _masks(piece: int, before: int, dtype: torch.dtype) -> Tensor:
    """[piece, before + piece]: -inf where a key is later than a query, if `before` keys come before the first."""
    hidden = torch.ones(piece, before + piece, dtype=torch.bool).triu(before + 1)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def _past(before: int, queries: int, dtype: torch.dtype) -> Tensor:
    """[queries, before + queries]: the mask of queries that `before` keys come before, fewer than LONG."""
    skipped = LONG - before
    return _masks(PIECE, LONG, dtype)[:queries, skipped : skipped + before + queries]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
