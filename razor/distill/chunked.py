"""Losses on logits without the logits: chunk, and take the gradient on the way forward.

The full [tokens, vocabulary] tensor and the half dozen of its size that a KL and its gradient need would
dominate the memory of a step. Since the losses are sums over tokens with known weights, both the loss and
its gradient with respect to the hidden states and the head's weight can be summed up chunk by chunk in the
forward pass (the idea of Liger's fused linear losses, arXiv 2410.10989); backward only scales the result.
Memory beyond the gradients themselves is a few tensors of one chunk, whatever the vocabulary.

Two sizes matter. Matrix products want many tokens, so logits are made for a whole *chunk*, in the compute
dtype. The formulas read and write memory a dozen times, in fp32, so they work on *blocks* of a few tokens
that stay in the processor's cache, and leave the gradient where the logits were. The formulas themselves see
log-probabilities and ordinary autograd; chunking is written once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from razor.distill.logits import entropy
from razor.distill.trace import Trace

CHUNK_BYTES = 128 * 2**20
"""Target size of the [tokens, vocabulary] logits of one chunk."""

BLOCK_BYTES = {"cpu": 4 * 2**20}
"""Target size of one fp32 block by device type; elsewhere a block is a whole chunk."""

Logits = Callable[[slice], Tensor]
"""Tokens of a chunk -> the teacher's logits there, in its compute dtype."""

Formula = Callable[[Tensor, Tensor | None, slice], Tensor]
"""(student log-probabilities, teacher's or None, tokens of the chunk) -> loss of each token and part [parts, n]."""


def chunks(tokens: int, row_bytes: int, target: int) -> Iterator[slice]:
    """Slices of tokens of `row_bytes` each that stay within `target` bytes (at least one token each)."""
    size = max(1, target // row_bytes)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of a chunk of logits [n, vocabulary] that the formulas work on."""
    row_bytes = 4 * logits.shape[-1]
    whole = row_bytes * len(logits)
    return chunks(len(logits), row_bytes, BLOCK_BYTES.get(logits.device.type, whole))


class _ChunkedLoss(torch.autograd.Function):
    """sum(part_weights @ values * token_weights), and the values [parts, n] without gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Logits | None,
        formula: Formula,
        part_weights: Tensor,
        token_weights: Tensor,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        grad_hidden = torch.zeros_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
        values = hidden.new_zeros((len(part_weights), len(hidden)), dtype=torch.float32)
        for part in chunks(len(hidden), len(weight) * weight.element_size(), chunk_bytes):
            logits = F.linear(hidden[part], weight, bias)
            expected = teacher(part) if teacher else None
            for block in blocks(logits):
                where = slice(part.start + block.start, part.start + block.stop)
                with torch.set_grad_enabled(wanted):
                    own = logits[block].float().requires_grad_(wanted)
                    other = None if expected is None else torch.log_softmax(expected[block].float(), -1)
                    values_here = formula(torch.log_softmax(own, -1), other, where)
                    total = (part_weights @ values_here * token_weights[where]).sum()
                values[:, where] = values_here.detach()
                if wanted:  # the logits of this block are done with: their gradient takes their place
                    logits[block] = torch.autograd.grad(total, own)[0].to(logits.dtype)
            if grad_hidden is not None and grad_weight is not None:
                grad_hidden[part] = logits @ weight
                grad_weight += logits.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += logits.float().sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(values)
        return (part_weights @ values * token_weights).sum(), values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        scaled = (None if grad is None else grad * scale for grad in ctx.saved_tensors)
        return (*scaled, None, None, None, None, None)


def teacher_logits(teacher: Trace, valid: Tensor) -> Logits:
    """The teacher's logits of any slice of the valid tokens, made when asked for."""
    hidden = teacher.hidden[valid]

    def of(part: slice) -> Tensor:
        with torch.no_grad():
            return F.linear(hidden[part], teacher.head_weight, teacher.head_bias)

    return of


def chunked_loss(
    student: Trace,
    teacher: Logits | None,
    valid: Tensor,
    formula: Formula,
    part_weights: Tensor,
    token_weights: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Weighted loss (scalar, differentiable) and the parts' values per token [parts, n] (not differentiable).

    Args:
        student: where hidden states and head come from.
        teacher: see `teacher_logits`; None if no part needs it.
        valid: [B, T] bool, the n tokens that carry a loss.
        formula: the parts' losses of a chunk.
        part_weights: [parts] weight of each part.
        token_weights: [n] weight of each token.
        chunk_bytes: memory of one chunk of logits.
    """
    return _ChunkedLoss.apply(
        student.hidden[valid],
        student.head_weight,
        student.head_bias,
        teacher,
        formula,
        part_weights,
        token_weights,
        chunk_bytes,
    )


def teacher_entropy(teacher: Trace, valid: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """[n] entropy of the teacher's distribution at each valid token, nats."""
    of, tokens, weight = teacher_logits(teacher, valid), int(valid.sum()), teacher.head_weight
    parts = []
    for part in chunks(tokens, len(weight) * weight.element_size(), chunk_bytes):
        logits = of(part)
        parts += [entropy(torch.log_softmax(logits[block].float(), -1)) for block in blocks(logits)]
    return torch.cat(parts) if parts else torch.zeros(0, device=valid.device)
