"""What is computed of a block of log-probabilities: each loss's value per token, and one gradient of their sum.

Any formula can be differentiated by autograd, at the price of a dozen passes over memory. The losses that are
used most, cross entropy and all that is a mixture of forward and reverse KL, have one simple gradient together.
With s and t the log-probabilities of student and teacher, q and p their exponentials, R = sum q (s - t):

    loss = a R + b sum p (t - s) - c s[label]
    d loss / d logits = q (a (s - t - R) + b + c) - b p - c [label]

where a and b add up, over the losses, weight times gamma and weight times 1 - gamma (see `mixed`). Targets that
were sampled take the place of p. The law tests hold this equal to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from razor.distill.logits import CrossEntropy
from razor.distill.loss import LogitsLoss
from razor.distill.targets import Targets

Values = Callable[[Tensor, Tensor | None, slice], Tensor]
"""(student log-probabilities [n, V], teacher's or None, which tokens) -> loss of each part and token [parts, n]."""


class Formula:
    """Values by a function, their gradient by autograd.

    Args:
        values: see `Values`.
    """

    def __init__(self, values: Values) -> None:
        self.values = values

    def differentiate(
        self, logits: Tensor, teacher: Tensor | None, part: slice, part_weights: Tensor, token_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values [parts, n], and the gradient [n, V] of part_weights @ values @ token_weights.

        Args:
            logits: [n, V] of the student; may be overwritten.
            teacher: [n, V] its log-probabilities, or None; may be overwritten.
            part: which tokens these are.
            part_weights: [parts].
            token_weights: [n], of these tokens.
        """
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            values = self.values(torch.log_softmax(logits, -1), teacher, part)
            total = (part_weights @ values * token_weights).sum()
        return values.detach(), torch.autograd.grad(total, logits)[0]


class LossFormula(Formula):
    """The losses of an objective.

    Args:
        losses: by name, in the order of the parts.
        labels: [tokens] of the micro-batch.
        facts: what each loss observed, by its name.
        targets: the teacher's cached word, in place of its log-probabilities.
    """

    def __init__(
        self,
        losses: Mapping[str, LogitsLoss],
        labels: Tensor,
        facts: Mapping[str, Mapping[str, float]],
        targets: Targets | None = None,
    ) -> None:
        super().__init__(self._values)
        self.losses, self.labels, self.facts, self.targets = losses, labels, facts, targets

    def _values(self, student: Tensor, teacher: Tensor | None, part: slice) -> Tensor:
        values, labels = [], self.labels[part]
        for name, loss in self.losses.items():
            facts = self.facts.get(name, {})
            if loss.needs_teacher and teacher is None and self.targets is not None:
                values.append(self.targets.loss(loss, student, part, labels, facts))
            else:
                values.append(loss(student, teacher, labels, facts))
        return torch.stack(values)

    def differentiate(  # noqa: D102 - see Formula
        self, logits: Tensor, teacher: Tensor | None, part: slice, part_weights: Tensor, token_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.targets is not None and self.targets.kind != "sampled":
            return super().differentiate(logits, teacher, part, part_weights, token_weights)
        gammas = {name: self._gamma(name, loss, teacher, part) for name, loss in self.losses.items()}
        if any(gamma is None for gamma in gammas.values()):
            return super().differentiate(logits, teacher, part, part_weights, token_weights)
        return self._closed(logits, teacher, part, part_weights, token_weights, gammas)

    def _gamma(
        self, name: str, loss: LogitsLoss, teacher: Tensor | None, part: slice
    ) -> float | Tensor | None:
        """Share of reverse KL in a loss; "0" stands for cross entropy too; None if it is no such loss."""
        if isinstance(loss, CrossEntropy) or (teacher is None and loss.linear):
            return 0.0
        return loss.reverse_share(teacher, self.labels[part], self.facts.get(name, {}))

    def _closed(
        self,
        logits: Tensor,
        teacher: Tensor | None,
        part: slice,
        part_weights: Tensor,
        token_weights: Tensor,
        gammas: Mapping[str, float | Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        labels = self.labels[part].unsqueeze(-1)
        student = torch.log_softmax(logits, -1)
        nll = -student.gather(-1, labels)
        reverse = forward = torch.zeros_like(nll)
        q = torch.softmax(student, -1)  # of log-probabilities: exp, but twice as fast on a CPU
        if teacher is not None:
            p, gap = torch.softmax(teacher, -1), student.sub_(teacher)
            reverse, forward = _dot(q, gap), -_dot(p, gap)
        elif self.targets is not None:
            forward = self.targets.forward_kl(student, part).unsqueeze(-1)
        values: list[Tensor] = []
        a = b = c = torch.zeros_like(nll)
        for (name, loss), weight in zip(self.losses.items(), part_weights, strict=True):
            gamma = gammas[name]
            assert gamma is not None
            if isinstance(loss, CrossEntropy):
                values.append(nll)
                c = c + weight
            else:
                values.append(gamma * reverse + (1 - gamma) * forward)
                a, b = a + weight * gamma, b + weight * (1 - gamma)
        scale = token_weights.unsqueeze(-1)
        a, b, c = a * scale, b * scale, c * scale
        if teacher is not None:
            gradient = gap.mul_(a).add_(b + c - a * reverse).mul_(q).sub_(p.mul_(b))
        else:
            gradient = q.mul_(b + c)
            if self.targets is not None:
                gradient.scatter_add_(-1, self.targets.ids[part], -b * self.targets.values[part])
        gradient.scatter_add_(-1, labels, -c)
        return torch.cat(values, -1).T, gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[n, 1] products of rows."""
    return (a * b).sum(-1, keepdim=True)
