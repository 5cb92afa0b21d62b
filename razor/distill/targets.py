"""What was kept of a teacher's distribution, to train without the teacher.

Whole distributions would take 100 kB a token. Two ways to keep less:

*sampled*: n tokens drawn from the teacher, with their counts (random-sampling KD, Anshumann et al.,
2503.16870). The counts are an unbiased estimate of the distribution, so losses that are linear in it, forward
KL, have an unbiased gradient, however few they are.

*top-k*: the k likeliest tokens and the mass of all others. Any loss can be computed on such coarse
distributions, but is then a lower bound of the true one (see `razor.distill.topk`), and nothing tells the
student how to spread the tail.

Beside them stands the teacher's exact entropy, which makes the value of a sampled KL exact on average, and
gives EAKLD its gamma.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from razor.distill.loss import LogitsLoss, TeacherTokens
from razor.distill.topk import coarse
from razor.errors import RazorError


@dataclass(frozen=True)
class Targets:
    """The teacher's word on each of the n valid tokens of a batch, in the order of `batch.valid`.

    Attributes:
        kind: "sampled" or "topk".
        ids: [n, k] int64 tokens, different ones in a row; sampled: a row that drew fewer is filled up with token
            0 of probability 0.
        values: [n, k] fp32; sampled: counts / draws, topk: log-probabilities.
        tail: [n] fp32 log-probability of all other tokens together; None if sampled, or if there are none.
        entropy: [n] fp32 of the whole distribution, nats.
        label_probability: [n] fp32 of the token that comes next in the text.
    """

    kind: Literal["sampled", "topk"]
    ids: Tensor
    values: Tensor
    tail: Tensor | None
    entropy: Tensor
    label_probability: Tensor

    def to(self, device: torch.device | str) -> Targets:
        """The same on another device."""
        moved: dict[str, Any] = {n: x.to(device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    @property
    def tokens(self) -> TeacherTokens:
        """What losses observe before the student runs."""
        return TeacherTokens(self.entropy, self.label_probability)

    @classmethod
    def cat(cls, parts: Sequence[Targets]) -> Targets:
        """Of several rows, one after the other."""
        widest = max(part.ids.shape[1] for part in parts)
        tails = [part.tail for part in parts if part.tail is not None]
        return cls(
            parts[0].kind,
            torch.cat([_widened(part.ids, widest) for part in parts]),
            torch.cat([_widened(part.values, widest) for part in parts]),
            torch.cat(tails) if tails else None,
            torch.cat([part.entropy for part in parts]),
            torch.cat([part.label_probability for part in parts]),
        )

    def loss(
        self, loss: LogitsLoss, student: Tensor, part: slice, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        """A loss of some of the tokens against these targets: [tokens of the part].

        Args:
            loss: one that `check` let pass.
            student: [n, vocabulary] its log-probabilities.
            part: which of the n tokens.
            labels: [n] of the part.
            facts: what the loss observed.
        """
        if self.kind == "sampled":
            return self.forward_kl(student, part)
        ids, values = self.ids[part], self.values[part]
        teacher = values if self.tail is None else torch.cat([values, self.tail[part].unsqueeze(-1)], -1)
        value: Tensor = loss(coarse(student, ids), teacher, labels, facts)
        return value

    def forward_kl(self, student: Tensor, part: slice) -> Tensor:
        """Sampled: KL(teacher || student) of some tokens, as cross entropy less the exact entropy."""
        return -(self.values[part] * student.gather(-1, self.ids[part])).sum(-1) - self.entropy[part]


def check_targets(kind: str, name: str, loss: object) -> None:
    """Raise RazorError if a loss cannot be computed from targets of a kind.

    Args:
        kind: "sampled" or "topk".
        name: what the objective calls the loss.
        loss: a loss that needs a teacher.
    """
    if not isinstance(loss, LogitsLoss):
        raise RazorError(
            f"The loss '{name}' looks inside the teacher, and a cache keeps only its output: train with "
            f"teacher=same, or drop it (distill.weights.{name}=0)."
        )
    if loss.temperature != 1:
        raise RazorError(
            f"The loss '{name}' has temperature {loss.temperature:g}, but a cache keeps the teacher at 1."
        )
    if kind == "sampled" and not loss.linear:
        raise RazorError(
            f"The loss '{name}' ({type(loss).__name__}) needs more than sampled targets: they serve forward KL "
            "(distill=kld) without bias, others only through top-k targets (razor cache_teacher kind=topk)."
        )
    if kind == "topk" and not loss.coarse:
        raise RazorError(
            f"The loss '{name}' ({type(loss).__name__}) cannot be computed from top-k targets; distill=kld on "
            "them is forward KL over the k likeliest tokens and the tail."
        )


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
