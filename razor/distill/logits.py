"""Losses between the student's distribution q and the teacher's p at each token, in nats.

Forward KL, KL(p || q), asks the student to cover all that the teacher thinks possible; reverse KL,
KL(q || p), asks it to put nothing where the teacher puts nothing (Hinton et al., 1503.02531; the choice
between them: 2402.10631). Losses between the two lie in `mixed` (a weight between them that the teacher
decides) and `divergences` (symmetric ones).

All work on log-probabilities of fp32 or better. Nothing is clamped: a clamp at a small probability would cut
off the gradient just where the student is confidently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from razor.distill.loss import LogitsLoss


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities [n, V] -> [n]."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher) of log-probabilities [n, V] -> [n]."""
    return (student.exp() * (student - teacher)).sum(-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats: [n, V] -> [n]."""
    # softmax of log-probabilities is exp, but twice as fast on a CPU
    return -(torch.softmax(log_probabilities, -1) * log_probabilities).sum(-1)


class CrossEntropy(LogitsLoss):
    """Next-token cross entropy with the text's own tokens; needs no teacher."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__()

    def per_token(  # noqa: D102 - see LogitsLoss
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        return -student.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class ForwardKL(LogitsLoss):
    """KL(teacher || student)."""

    linear = True

    def reverse_share(  # noqa: D102
        self, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> float | None:
        return 0.0 if self.temperature == 1 else None

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        return forward_kl(student, teacher)


class ReverseKL(LogitsLoss):
    """KL(student || teacher)."""

    def reverse_share(  # noqa: D102
        self, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> float | None:
        return 1.0 if self.temperature == 1 else None

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        return reverse_kl(student, teacher)
