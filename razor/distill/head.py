"""Logits of a chunk of tokens, and more exactly than their dtype holds.

A head product in bf16 adds up in fp32 but rounds what it stores to 8 bits: of logits around 20 that is an error
of up to 0.06, which alone makes a KL of 1e-4 to 1e-3 nats. A product in fp32 would be three to four times slower
on a CPU. But the same product can be asked for what the rounding lost: with C = round(h W), `addmm` adds up
h W - C in fp32 and rounds the *difference*, so that C and it together hold 16 bits. For a student the teacher's C
serves as the base: the difference then is the very gap between the two that a KL is made of. So two models
cost three products, all in the compute dtype; and two where the gap is so wide that the teacher's own rounding is
nothing beside it (`is_felt`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from razor.distill.trace import Trace

HALF = (torch.bfloat16, torch.float16)

SAMPLE, SHARE = 32, 0.005
"""One token in how many says whether rounding is felt, and what share of a KL it may then make up."""


@dataclass(frozen=True)
class Head:
    """An output head and what goes into it.

    Attributes:
        hidden: [n, width] of the tokens that carry a loss.
        weight: [vocabulary, width].
        bias: [vocabulary] or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, trace: Trace, valid: Tensor) -> Head:
        """Of a recorded pass, for its valid tokens."""
        return cls(trace.hidden[valid], trace.head_weight, trace.head_bias)

    def detached(self) -> Head:
        """The same without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.hidden.detach(), self.weight.detach(), bias)

    @property
    def row_bytes(self) -> int:
        """Bytes of the logits of one token."""
        return len(self.weight) * self.weight.element_size()

    def inputs(self, part: slice) -> Tensor:
        """Hidden states of some tokens, in the dtype of the weight (under autocast they may differ)."""
        return self.hidden[part].to(self.weight.dtype)

    def product(self, part: slice, out: Tensor | None = None) -> Tensor:
        """H W of some tokens [m, vocabulary], rounded to the compute dtype; the bias is not in it."""
        return torch.mm(self.inputs(part), self.weight.T, out=out)

    def beyond(self, base: Tensor, part: slice, out: Tensor | None = None) -> Tensor | None:
        """H W - base, added up in fp32, only the difference rounded; None if nothing would be gained by it.

        Args:
            base: [m, vocabulary], a product of this head or of another of the same dtype.
            part: which tokens.
            out: where to put it.
        """
        if base.dtype not in HALF or base.dtype != self.weight.dtype:
            return None
        return torch.addmm(base, self.inputs(part), self.weight.T, beta=-1, out=out)

    def logits(self, block: Tensor, *more: Tensor | None) -> Tensor:
        """The sum of parts of some tokens' logits, and the bias, in fp32 (or float64 as it comes)."""
        total = wide(block)
        for part in (*more, self.bias):
            if part is not None:
                total = total + part
        return total


def exact_products(head: Head) -> torch.autocast:
    """A context without autocast, which would round fp32 products."""
    return torch.autocast(head.hidden.device.type, enabled=False)


def is_felt(teacher: Head, student: Head, base: Tensor, gap: Tensor) -> bool:
    """Whether what the teacher's logits lost by rounding changes a KL from it by more than `SHARE`.

    An error e of logits changes a KL by half of sum p e^2 on average, p being the probabilities; and rounding to a
    relative precision eps makes errors of at most eps^2 / 12 of a logit's square. It is the sum over all tokens
    that keeps its precision: a token far nearer to its teacher than the others may lose its own.

    Args:
        teacher: the head that `base` is a product of.
        student: the other.
        base: [m, vocabulary], the teacher's product, rounded.
        gap: [m, vocabulary], the student's product less `base`.
    """
    base, gap, eps = base[::SAMPLE], gap[::SAMPLE], torch.finfo(base.dtype).eps
    logp = torch.log_softmax(teacher.logits(base), -1)
    kl = logp.exp() * (logp - torch.log_softmax(student.logits(gap, base), -1))
    change = logp.exp() * wide(base).square() * eps**2 / 24
    return bool(change.sum() > SHARE * kl.sum())


def wide(values: Tensor) -> Tensor:
    """In fp32, or in the double precision it comes in."""
    return values if values.dtype == torch.float64 else values.float()
