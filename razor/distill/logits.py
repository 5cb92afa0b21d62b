"""Losses between the student's distribution q and the teacher's p at each token, in nats.

Forward KL, KL(p || q), asks the student to cover all that the teacher thinks possible; reverse KL,
KL(q || p), asks it to put nothing where the teacher puts nothing (Hinton et al., 1503.02531; the choice
between them: 2402.10631). EAKLD lets the teacher's entropy decide between the two (arXiv 2605.04062).

All work on fp32 log-probabilities. Nothing is clamped: a clamp at a small probability would cut off the
gradient just where the student is confidently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from razor.distill.loss import LogitsLoss
from razor.errors import RazorError


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities [n, V] -> [n]."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher) of log-probabilities [n, V] -> [n]."""
    return (student.exp() * (student - teacher)).sum(-1)


class CrossEntropy(LogitsLoss):
    """Next-token cross entropy with the text's own tokens; needs no teacher."""

    needs_teacher = False

    def per_token(  # noqa: D102 - see LogitsLoss
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        return -student.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class ForwardKL(LogitsLoss):
    """KL(teacher || student)."""

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        assert teacher is not None
        return forward_kl(student, teacher)


class ReverseKL(LogitsLoss):
    """KL(student || teacher)."""

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        assert teacher is not None
        return reverse_kl(student, teacher)


class EAKLD(LogitsLoss):
    """Entropy-aware KL: gamma * KL(student || teacher) + (1 - gamma) * KL(teacher || student).

    gamma = clip(1 - H / ln k, 0, 1), with H the teacher's mean entropy over the batch (tokens, then documents):
    a confident teacher gives reverse KL, an uncertain one forward KL. One gamma per micro-batch
    (arXiv 2605.04062).

    Args:
        k: H = ln k (uniform over k tokens) makes the loss purely forward KL.
        cap: "batch" clips only the mean, as the published code does; "token" caps each token's entropy at ln k
            first, as the paper's text says.
    """

    needs_entropy = True

    def __init__(self, k: int = 16, cap: str = "batch") -> None:
        super().__init__()
        if k < 2:
            raise RazorError(f"EAKLD's k is '{k}': it must be at least 2 (distill.losses.eakld.k=16).")
        if cap not in ("batch", "token"):
            raise RazorError(f"EAKLD's cap is '{cap}'. Choices: batch, token (distill.losses.eakld.cap=...).")
        self.k, self.cap = k, cap

    def observe(self, entropy: Tensor, weights: Tensor) -> dict[str, float]:
        """`{"gamma": ...}`."""
        ceiling = math.log(self.k)
        if self.cap == "token":
            entropy = entropy.clamp(max=ceiling)
        mean = float((entropy * weights).sum())
        return {"gamma": min(1.0, max(0.0, 1.0 - mean / ceiling))}

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        assert teacher is not None
        gamma, gap = facts["gamma"], student - teacher
        # gamma * sum q (log q - log p) - (1 - gamma) * sum p (log q - log p): one weighted sum of the gap
        return ((gamma * student.exp() - (1 - gamma) * teacher.exp()) * gap).sum(-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats: [n, V] -> [n]."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
