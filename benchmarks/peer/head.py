"""What both sides of `distill_loss.py` are given, and how one call of a loss is measured.

Time is that of forward and backward, from hidden states to their gradient and that of the student's head.

Memory is the most that the process ever holds during one call, less what it holds before it, less the gradients
that the call leaves behind (of the head's weight and of the hidden states), which any way of computing them has
to make. Before each such call unused heap is given back to the system and the high-water mark set back, so that
nothing freed earlier serves unseen; and a call on a tiny head has already loaded code and started threads.
Figures are the kernel's (resident pages), not a profiler's, and therefore count the scratch memory of libraries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peer.sides import count_anew, highest


@dataclass
class Head:
    """Hidden states [1, T, width] and head weights [vocabulary, width] of two models, and labels [1, T]."""

    hidden: Tensor
    weight: Tensor
    teacher: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @classmethod
    def random(cls, tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> Head:
        """Logits of size 2, and a student near its teacher; filled in place, so that no copies are made."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.empty(shape, dtype=dtype).normal_(0, scale, generator=generator)

        teacher, weight = normal(1, tokens, width, scale=1.0), normal(vocabulary, width, scale=2 / width**0.5)
        hidden = normal(1, tokens, width, scale=0.1).add_(teacher)
        labels = torch.randint(0, vocabulary, (1, tokens), generator=generator)
        return cls(hidden.requires_grad_(), weight.clone().requires_grad_(), teacher, weight, labels)

    def forget(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None


def measured(job: dict[str, Any], loss: Callable[[Head], Tensor]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Words `time` and `memory_of_call` for a loss at the job's shape.

    Args:
        job: tokens, vocabulary, width, dtype.
        loss: scalar with gradient.
    """
    dtype = getattr(torch, job["dtype"])
    tiny = Head.random(8, 512, job["width"], dtype)
    loss(tiny).backward()
    head = Head.random(job["tokens"], job["vocabulary"], job["width"], dtype)

    def call() -> dict[str, Any]:
        head.forget()
        started = time.perf_counter()
        value = loss(head)
        value.backward()
        return {"seconds": time.perf_counter() - started, "loss": float(value)}

    def memory() -> dict[str, Any]:
        head.forget()
        before = count_anew()
        value = loss(head)
        value.backward()
        peak = highest()
        left = sum(x.grad.nbytes for x in (head.hidden, head.weight) if x.grad is not None)
        extra = None if before is None or peak is None else peak - before - left
        return {"bytes": extra, "gradients": left, "before": before}

    return {"time": call, "memory_of_call": memory}
