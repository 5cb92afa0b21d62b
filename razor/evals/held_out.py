"""Held-out text: perplexity, and how far the student's predictions are from the teacher's.

KL(teacher || student) per response token at temperature 1, in nats, sees damage long before a benchmark of a
hundred rows does. Of images the same is said of each image's class: an image has one response token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from razor import processes
from razor.distill import CrossEntropy, ForwardKL, Samples
from razor.distill.chunked import chunked_loss
from razor.distill.formula import Formula
from razor.distill.head import Head
from razor.distill.teacher_logits import TeacherLogits
from razor.models import record

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldOut:
    """Scores on held-out text.

    Attributes:
        perplexity: exp of the mean cross entropy per response token.
        kl: mean KL(teacher || student) per response token, nats.
        agreement: percent of response tokens where both find the same token likeliest.
        tokens: response tokens scored.
    """

    perplexity: float
    kl: float
    agreement: float
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def score_held_out(student: PreTrainedModel, teacher: PreTrainedModel, batches: Sequence[Samples]) -> HeldOut:
    """Score a student (or the teacher itself) against its teacher. Activations and KV are quantized as trained.

    Of several processes each scores its part of the batches; all call this, and all get the same answer.
    """
    losses = (CrossEntropy(), ForwardKL())
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    device = next(student.parameters()).device
    training = student.training
    student.eval()
    for batch in (b.to(device) for b in batches[processes.rank() :: processes.world()]):
        labels = batch.labels[batch.valid]
        taught = record(teacher, batch)
        learned = taught if student is teacher else record(student, batch)
        expected = TeacherLogits(Head.of(taught, batch.valid))

        def formula(
            logp: torch.Tensor, of: torch.Tensor | None, part: slice, labels: torch.Tensor = labels
        ) -> torch.Tensor:
            assert of is not None
            same = (logp.argmax(-1) == of.argmax(-1)).float()
            return torch.stack([*(loss(logp, of, labels[part], {}) for loss in losses), same])

        ones = torch.ones(3, device=device)
        own = Head.of(learned, batch.valid)
        _, values = chunked_loss(own, expected, Formula(formula), ones, ones.new_ones(len(labels)))
        sums += values.double().sum(-1).cpu()
        tokens += len(labels)
    student.train(training)
    *found, counted = processes.totals([*sums.tolist(), tokens])
    sums, tokens = torch.tensor(found, dtype=torch.float64), int(counted)
    entropy, kl, agreement = (sums / max(1, tokens)).tolist()
    return HeldOut(math.exp(min(entropy, 700.0)), kl, 100 * agreement, tokens)
