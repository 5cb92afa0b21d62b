"""Losses on logits without the logits: chunk, and take the gradient on the way forward.

The full [tokens, vocabulary] tensor and the half dozen of its size that a KL and its gradient need would
dominate the memory of a step. Since the losses are sums over tokens with known weights, both the loss and
its gradient with respect to the hidden states and the head's weight can be summed up chunk by chunk in the
forward pass (the idea of Liger's fused linear losses, arXiv 2410.10989); backward only scales the result.
Memory beyond the gradients themselves is a few tensors of one chunk, and what `KEPT_BYTES` allows to be kept,
whatever the vocabulary.

The formulas themselves see log-probabilities and ordinary autograd; chunking is written once, here. `pieces`
says how large the chunks are, `head` how their logits come to be exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from razor.distill.formula import Formula
from razor.distill.head import HALF, Head, exact_products, is_felt, wide
from razor.distill.pieces import KEPT_BYTES, SLICE_BYTES, blocks, chunk_bytes, pieces
from razor.distill.teacher_logits import TeacherLogits


class _ChunkedLoss(torch.autograd.Function):
    """sum(part_weights @ values * token_weights), and the values [parts, n] without gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: TeacherLogits | None,
        formula: Formula,
        part_weights: Tensor,
        token_weights: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        student, needed = Head(hidden, weight, bias), ctx.needs_input_grad[:3]
        values = wide(hidden).new_zeros(len(part_weights), len(hidden))
        parts = list(pieces(len(hidden), student.row_bytes, chunk))
        sums = _Gradients(student, needed, parts)
        for part in parts:  # of which nothing may live on beside the next one
            made = _Chunk(student, teacher, part, sums.place(part))
            sums.add(made.through(formula, part_weights, token_weights, values, any(needed)), part)
            del made
        ctx.gradients = sums.finish()
        ctx.mark_non_differentiable(values)
        return (part_weights @ values * token_weights).sum(), values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradient of a large head is scaled in place, so backward goes through a chunked loss once."
            )
        scaled = [None if g is None else _scaled(g, gradients[0]) for g in ctx.gradients]
        if any(g is not None and _is_large(g) for g in ctx.gradients):
            ctx.gradients = None
        return (*scaled, None, None, None, None, None)


def _is_large(gradient: Tensor) -> bool:
    """Whether a second copy would be felt."""
    return gradient.nbytes > SLICE_BYTES


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """The product in fp32, rounded once: a scale rounded to bf16 would weigh micro-batches wrongly."""
    out = gradient if _is_large(gradient) else torch.empty_like(gradient)
    # on a CPU torch treats a scalar tensor as a number; elsewhere a vector of one brings it to fp32
    return torch.mul(gradient, scale if gradient.device.type == "cpu" else scale.reshape(1), out=out)


class _Chunk:
    """The head products of both models for some tokens; `own` is the student's, or its gap to the teacher's."""

    def __init__(
        self, student: Head, teacher: TeacherLogits | None, part: slice, out: Tensor | None = None
    ) -> None:
        self._student, self._teacher, self._part = student, teacher, part
        self._base = self._lost = gap = None
        if teacher is not None:
            self._base = teacher.product(part)
            gap = student.beyond(self._base, part, out)
            # asked on a CPU only: elsewhere the answer would be waited for, and products are cheap
            if gap is None or gap.device.type != "cpu" or is_felt(teacher.head, student, self._base, gap):
                self._lost = teacher.head.beyond(self._base, part)
        self.own = student.product(part, out) if gap is None else gap
        self._rest = self._base if gap is not None else None
        if gap is None and teacher is not None:  # a teacher of another dtype
            self._rest = student.beyond(self.own, part)

    def through(
        self, formula: Formula, part_weights: Tensor, token_weights: Tensor, values: Tensor, needed: bool
    ) -> Tensor:
        """Fill in `values` [parts, n], and make the logits their gradient if that is needed: `own`."""
        for block in blocks(self.own):
            where = slice(self._part.start + block.start, self._part.start + block.stop)
            logits, other = self._student_logits(block), self._teacher_logp(block)
            if not needed:
                values[:, where] = formula.values(torch.log_softmax(logits, -1), other, where)
                continue
            values[:, where], gradient = formula.differentiate(
                logits, other, where, part_weights, token_weights[where]
            )
            self.own[block] = gradient  # in the place of the logits, which are done with
        return self.own

    def _student_logits(self, block: slice) -> Tensor:
        return self._student.logits(self.own[block], None if self._rest is None else self._rest[block])

    def _teacher_logp(self, block: slice) -> Tensor | None:
        if self._teacher is None or self._base is None:
            return None
        lost = None if self._lost is None else self._lost[block]
        return torch.log_softmax(self._teacher.head.logits(self._base[block], lost), -1)


class _Gradients:
    """Gradients of hidden states, weight and bias, from those of the logits of each chunk.

    The weight's is a sum over tokens, of products that add up in fp32 and round once. So that a 16-bit sum rounds
    seldom, without a copy of it in fp32, chunks are made side by side in a buffer and multiplied when it is full.
    """

    def __init__(self, head: Head, needed: tuple[bool, ...], parts: list[slice]) -> None:
        self.head = head
        self.hidden = torch.zeros_like(head.hidden) if needed[0] else None
        self.weight = self.bias = None
        self._logits: Tensor | None = None
        self._first = self._last = 0  # tokens that the buffer holds
        if needed[1] and parts:
            self.weight = torch.zeros_like(head.weight)
            chunk = parts[0].stop
            many = max(1, KEPT_BYTES // (chunk * head.row_bytes)) if head.weight.dtype in HALF else 1
            rows = min(len(head.hidden), many * chunk)
            self._logits = head.weight.new_empty(rows, len(head.weight))
        if needed[2] and head.bias is not None:
            self.bias = torch.zeros_like(head.bias, dtype=wide(head.bias[:0]).dtype)

    def place(self, part: slice) -> Tensor | None:
        """Where a chunk of logits [m, vocabulary] is to be made, to become its gradient there."""
        if self._logits is None:
            return None
        if part.stop - self._first > len(self._logits):
            self._multiply()
        self._last = part.stop
        return self._logits[part.start - self._first : part.stop - self._first]

    def add(self, logits: Tensor, part: slice) -> None:
        """`logits`: gradients of a chunk's logits [m, vocabulary], in their place if they have one."""
        if self.hidden is not None:
            self.hidden[part] = logits @ self.head.weight
        if self.bias is not None:
            self.bias += wide(logits).sum(0)

    def finish(self) -> tuple[Tensor | None, ...]:
        """Of hidden states, weight and bias; a 16-bit bias's is fp32, to be rounded by whoever takes it."""
        self._multiply()
        self._logits = None
        return self.hidden, self.weight, self.bias

    def _multiply(self) -> None:
        """Add the buffer's part of the weight's gradient, a slice of the vocabulary at a time; empty the buffer."""
        if self.weight is not None and self._logits is not None and self._last > self._first:
            hidden = self.head.inputs(slice(self._first, self._last))
            logits = self._logits[: self._last - self._first]
            vocabulary, width = self.weight.shape
            for rows in pieces(vocabulary, width * self.weight.element_size(), SLICE_BYTES):
                self.weight[rows].addmm_(logits[:, rows].T, hidden)
        self._first = self._last


def chunked_loss(
    student: Head,
    teacher: TeacherLogits | None,
    formula: Formula,
    part_weights: Tensor,
    token_weights: Tensor,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted loss (scalar, differentiable) and the parts' values per token [parts, n] (not differentiable).

    Args:
        student: hidden states of the n tokens that carry a loss, and the head.
        teacher: its logits of the same tokens; None if no part compares with them.
        formula: the parts' losses of some tokens.
        part_weights: [parts] weight of each part.
        token_weights: [n] weight of each token.
        chunk: bytes of one chunk of logits; by default what suits the device.
    """
    device, dtype = student.hidden.device.type, wide(student.hidden[:0]).dtype
    size = chunk_bytes(device, student.weight.element_size()) if chunk is None else chunk
    if not torch.is_grad_enabled():
        student = student.detached()  # inside a Function nobody could tell
    total: Tensor
    with exact_products(student):
        total, values = _ChunkedLoss.apply(
            student.hidden,
            student.weight,
            student.bias,
            teacher,
            formula,
            part_weights.to(dtype),
            token_weights.to(dtype),
            size,
        )
    return total, values
