"""Fisher information: how far predictions move when weights do, to second order.

KL(p || p + change) of a model that makes small errors d is 1/2 d^T F d, with F the Fisher information, the mean of
g g^T over gradients g of log p(y) for labels y *drawn from the model's own predictions*; its diagonal, the mean of
g^2, is what is kept (Kirkpatrick et al., arXiv 1612.00796; for bit widths HAWQ, arXiv 1905.03696, and SqueezeLLM,
arXiv 2306.07629). Drawn labels have gradients of mean zero, independent from token to token, so the square of the
sum over a batch is an unbiased estimate of the sum of squares: one backward pass a batch is enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from razor.allocate.scores.base import Score
from razor.allocate.subject import Subject, lost
from razor.distill import Batch, CrossEntropy
from razor.distill.chunked import chunked_loss
from razor.distill.formula import Formula
from razor.distill.head import Head
from razor.distill.pieces import pieces
from razor.models import record

DRAWN_BYTES = 1 << 26
"""Of logits that labels are drawn from at once."""

KEPT_BYTES = 2 << 30
"""Of squared gradients that may wait for the last batch; a larger model's are weighed batch by batch."""


class Fisher(Score):
    """loss = 1/2 sum over a row of F (Wq - W)^2, in nats per token, F of labels drawn from the model.

    A matrix's gradient is squared and forgotten as soon as the backward pass has it, so one gradient is in memory
    at a time beside the model. The squares are summed over the batches, 4 bytes a weight, and weighed with the
    options' errors once; where that is more than `KEPT_BYTES`, they are weighed after every batch, and the options
    are rounded anew each time. It says nothing of large errors: the real KL saturates where this goes on growing.
    """

    name = "fisher"
    unit = "nats"

    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        waiting = dict(subject.waiting(done))
        sums: dict[str, Tensor] = {}
        tokens, generator = 0, torch.Generator().manual_seed(subject.seed)
        kept = 4 * sum(target.weights for target in waiting.values()) <= KEPT_BYTES

        def add(name: str) -> Any:
            target, view = waiting[name], waiting[name].site.view

            def hook(weight: Tensor) -> None:
                assert weight.grad is not None
                squared = view.matrix(weight.grad).float().square()
                own = squared if kept else lost(subject.weight(target), target, squared)
                sums[name] = own if name not in sums else sums[name] + own
                weight.grad = None

            return hook

        with subject.gradients(waiting.values()), ExitStack() as stack:
            for name, target in waiting.items():
                weight: Any = subject.weight_of(target)
                stack.callback(weight.register_post_accumulate_grad_hook(add(name)).remove)
            for batch in subject.read(self.rows, "fisher"):
                tokens += _backward(subject, batch, generator)
        for name, target in waiting.items():
            own = sums.pop(name, None)
            if own is None:
                own = torch.zeros(len(target.formats), target.site.shape[0])
            elif kept:
                own = lost(subject.weight(target), target, own)
            yield name, own / (2 * max(1, tokens))


def _backward(subject: Subject, batch: Batch, generator: torch.Generator) -> int:
    """Gradients of the log-likelihood of drawn labels, summed over the batch; the number of its tokens."""
    with torch.enable_grad():
        head = Head.of(record(subject.model, batch), batch.valid)
        labels = _drawn(head.detached(), generator)
        formula = Formula(lambda logp, _, part: CrossEntropy()(logp, None, labels[part], {}).unsqueeze(0))
        one = head.hidden.new_ones(1, dtype=torch.float32)
        loss, _ = chunked_loss(head, None, formula, one, one.new_ones(len(labels)))
        loss.backward()
    return len(labels)


@torch.no_grad()
def _drawn(head: Head, generator: torch.Generator) -> Tensor:
    """[n] a token drawn from each prediction."""
    found = []
    for part in pieces(len(head.hidden), head.row_bytes, DRAWN_BYTES):
        probabilities = head.logits(head.product(part)).float().softmax(-1).cpu()
        found.append(torch.multinomial(probabilities, 1, generator=generator).squeeze(1))
    return torch.cat(found).to(head.hidden.device)
