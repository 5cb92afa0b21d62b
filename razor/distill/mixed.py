"""Between reverse and forward KL, with the teacher's confidence as the weight.

    gamma * KL(student || teacher) + (1 - gamma) * KL(teacher || student)

Where the teacher is sure, gamma is near 1 and the student is asked to be as sure (reverse KL); where it wavers,
the student is asked to cover what it thinks possible (forward KL). The losses here differ in how they measure
confidence: EAKLD by the teacher's entropy (arXiv 2605.04062), CAKLD by the probability it gives to the text
(BitDistiller, 2402.10631, equation 5).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from razor.distill.logits import entropy
from razor.distill.loss import LogitsLoss, TeacherTokens
from razor.errors import RazorError


class MixedKL(LogitsLoss):
    """gamma * KL(student || teacher) + (1 - gamma) * KL(teacher || student).

    Args:
        gamma: "batch": one for each micro-batch, observed by the subclass; "token": one for each token; or a
            number from 0 (forward KL) to 1 (reverse KL), the same for all.
        temperature: see `LogitsLoss`; gamma is measured without it.

    Raises:
        RazorError: a gamma out of its range.
    """

    def __init__(self, gamma: Literal["batch", "token"] | float = "batch", temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if gamma not in ("batch", "token") and not (isinstance(gamma, (int, float)) and 0 <= gamma <= 1):
            raise RazorError(f"gamma={gamma}. Choices: batch, token, or a number from 0 to 1.")
        self.gamma = gamma

    @property
    def observes(self) -> bool:
        """Only a gamma of the batch has to be known beforehand."""
        return self.gamma == "batch"

    def observe(self, tokens: TeacherTokens, weights: Tensor) -> dict[str, float]:
        """`{"gamma": ...}`."""
        return {"gamma": self.confidence(tokens, weights)}

    @abstractmethod
    def confidence(self, tokens: TeacherTokens, weights: Tensor) -> float:
        """Gamma of a micro-batch, 0..1."""

    @abstractmethod
    def token_confidence(self, teacher: Tensor, labels: Tensor) -> Tensor:
        """[n, 1] gamma of each token, from the teacher's log-probabilities [n, vocabulary]."""

    def _shares(self, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]) -> float | Tensor:
        """The gamma of the micro-batch, or [n, 1] of each token."""
        if self.gamma == "batch":
            return facts["gamma"]
        if self.gamma != "token":
            return float(self.gamma)
        with torch.no_grad():
            return self.token_confidence(teacher, labels)

    def reverse_share(  # noqa: D102
        self, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> float | Tensor | None:
        return None if teacher is None or self.temperature != 1 else self._shares(teacher, labels, facts)

    def forward(  # noqa: D102 - gamma of a token is measured before the temperature softens the teacher
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        assert teacher is not None
        settled: Any = {"gamma": self._shares(teacher, labels, facts)}
        return super().forward(student, teacher, labels, settled)

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        gamma, gap = facts["gamma"], student - teacher
        # gamma * sum q (log q - log p) - (1 - gamma) * sum p (log q - log p): one weighted sum of the gap
        return ((gamma * student.exp() - (1 - gamma) * teacher.exp()) * gap).sum(-1)


class EAKLD(MixedKL):
    """Entropy-aware KL: gamma = clip(1 - H / ln k, 0, 1), H the teacher's entropy (arXiv 2605.04062).

    By default H is the mean over the micro-batch (tokens, then documents), as published: one gamma for all.
    `gamma="token"` is our variant: each token's own H, so that sure and unsure tokens of one batch are treated
    apart; it needs no pass over the teacher's logits before the loss.

    Args:
        k: H = ln k (uniform over k tokens) makes the loss purely forward KL.
        cap: "batch" clips only the mean, as the published code does; "token" caps each token's entropy at ln k
            first, as the paper's text says. With gamma="token" both are the same.
        gamma, temperature: see `MixedKL`.
    """

    def __init__(
        self,
        k: int = 16,
        cap: Literal["batch", "token"] = "batch",
        gamma: Literal["batch", "token"] | float = "batch",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(gamma, temperature)
        if k < 2:
            raise RazorError(f"EAKLD's k is '{k}': it must be at least 2 (distill.losses.eakld.k=16).")
        if cap not in ("batch", "token"):
            raise RazorError(f"EAKLD's cap is '{cap}'. Choices: batch, token (distill.losses.eakld.cap=...).")
        self.k, self.cap = k, cap

    def confidence(self, tokens: TeacherTokens, weights: Tensor) -> float:  # noqa: D102
        ceiling, uncertain = math.log(self.k), tokens.entropy
        if self.cap == "token":
            uncertain = uncertain.clamp(max=ceiling)
        mean = float((uncertain * weights).sum())
        return min(1.0, max(0.0, 1.0 - mean / ceiling))

    def token_confidence(self, teacher: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        return (1 - entropy(teacher) / math.log(self.k)).clamp(0, 1).unsqueeze(-1)


class CAKLD(MixedKL):
    """Confidence-aware KL: gamma is the mean probability that the teacher gives to the text's own tokens.

    BitDistiller (2402.10631, equation 5) measures it once over the data set; here it is the mean over the
    micro-batch (tokens, then documents), each token's own with `gamma="token"`, or a number measured elsewhere.
    """

    @property
    def coarse(self) -> bool:  # type: ignore[override]
        """The probability of the text's own token is not among the likeliest ones for certain."""
        return self.gamma != "token"

    def confidence(self, tokens: TeacherTokens, weights: Tensor) -> float:  # noqa: D102
        return float((tokens.label_probability * weights).sum())

    def token_confidence(self, teacher: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        return teacher.gather(-1, labels.unsqueeze(-1)).exp()
