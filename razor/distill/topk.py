"""KL over the tokens that the teacher thinks likely, the others taken together.

A distribution over a vocabulary is made coarse: its k likeliest tokens (the teacher's, for both models) keep
their probabilities, and all others share one bucket, the *tail*. By the log-sum inequality a divergence of
coarse distributions is never larger than the true one. What it ignores is how the student spreads the tail.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from razor.distill.logits import forward_kl
from razor.distill.loss import LogitsLoss
from razor.errors import RazorError


def coarse(log_probabilities: Tensor, ids: Tensor, tail: bool = True) -> Tensor:
    """Log-probabilities [n, V] of the tokens `ids` [n, k] and of all others together: [n, k + 1].

    Args:
        log_probabilities: of all tokens.
        ids: different tokens of each row; if they are the whole vocabulary there is no tail.
        tail: False drops the rest and renormalises over the k.
    """
    kept = log_probabilities.gather(-1, ids)
    if ids.shape[-1] == log_probabilities.shape[-1]:
        return kept
    if not tail:
        return torch.log_softmax(kept, -1)
    rest = log_probabilities.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest], -1)


class TopKKL(LogitsLoss):
    """KL(teacher || student) over the teacher's k likeliest tokens and the tail.

    Args:
        k: number of tokens; from the size of the vocabulary on this is `ForwardKL`.
        tail: whether the other tokens count, as one bucket; without it both distributions are renormalised over
            the k, and mass that the student puts elsewhere costs nothing.
        temperature: see `LogitsLoss`.
    """

    coarse = False  # it makes its own choice of tokens

    def __init__(self, k: int = 64, tail: bool = True, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if k < 1:
            raise RazorError(f"TopKKL's k is {k}: it must be at least 1.")
        self.k, self.tail = k, tail

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        if self.k >= teacher.shape[-1]:
            return forward_kl(student, teacher)
        ids = teacher.topk(self.k, -1).indices
        return forward_kl(*(coarse(x, ids, self.tail) for x in (student, teacher)))
