"""Divergences that look both ways at once, between the student's q and the teacher's p, in nats.

Both are bounded, so a few tokens where the student is far off do not drown the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from razor.distill.logits import forward_kl
from razor.distill.loss import LogitsLoss
from razor.errors import RazorError


class JSD(LogitsLoss):
    """Generalized Jensen-Shannon divergence (Agarwal et al., 2306.13649, equation 1).

    beta * KL(p || m) + (1 - beta) * KL(q || m) with m = beta * p + (1 - beta) * q. At beta = 1/2 it is the
    ordinary, symmetric one, at most ln 2; its gradient goes to that of forward KL (divided by beta) as beta
    goes to 0, and of reverse KL (divided by 1 - beta) as beta goes to 1.

    Args:
        beta: share of the teacher in the mixture, between 0 and 1.
        temperature: see `LogitsLoss`.
    """

    def __init__(self, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if not 0 < beta < 1:
            raise RazorError(
                f"JSD's beta is {beta}: it lies between 0 and 1, both excluded; for the ends take ForwardKL "
                "(distill=kld) and ReverseKL (distill=rkld)."
            )
        self.beta = beta

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        mixture = torch.logaddexp(teacher + math.log(self.beta), student + math.log(1 - self.beta))
        return self.beta * forward_kl(mixture, teacher) + (1 - self.beta) * forward_kl(mixture, student)


class TotalVariation(LogitsLoss):
    """Half the sum of absolute differences of the probabilities, 0..1 (no nats).

    The chance that a sample can tell the two apart (Wen et al., 2307.15190, section 3.1).
    """

    def per_token(  # noqa: D102
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        return 0.5 * (student.exp() - teacher.exp()).abs().sum(-1)
