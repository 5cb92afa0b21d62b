"""Routers of a mixture of experts: send tokens where the teacher would.

Rounded weights shift the router's logits, and a token that goes to another expert meets weights that were never
trained for it. The KL of the two distributions over experts keeps the choice stable, also among the experts that
were not chosen. The z-loss keeps router logits small, so that they do not drift where rounding makes them unstable.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from razor.distill.batch import Samples
from razor.distill.head import wide
from razor.distill.layers import ChosenLayers, Layers
from razor.distill.logits import forward_kl
from razor.distill.trace import Shape
from razor.errors import RazorError


class RouterLoss(ChosenLayers):
    """A loss on router logits.

    Args:
        layers: "all" that have a router, or numbers of the teacher's (of the student's, if none is looked at).
    """

    record = "routers"
    what = "router whose logits can be recorded"

    def __init__(self, layers: Layers = "all") -> None:
        super().__init__(layers)

    def available(self, shape: Shape) -> Collection[int]:  # noqa: D102
        return shape.routers


class RouterKL(RouterLoss):
    """KL(teacher || student) of the softmax of router logits, nats per token.

    The softmax is over all experts, also in models that route by a sigmoid, or by groups.

    Args:
        layers: see `RouterLoss`.
    """

    def fit(self, student: Shape, teacher: Shape) -> None:  # noqa: D102
        super().fit(student, teacher)
        for layer in self._chosen:
            own, other = student.routers[self.counterpart(layer)], teacher.routers[layer]
            if own != other:
                raise RazorError(
                    f"layer {layer}: {student.name} has {own} experts, {teacher.name} {other}; routers can be "
                    "compared if they choose from the same."
                )

    def per_token(self, student: Tensor, teacher: Tensor, batch: Samples) -> Tensor:
        """Sum over experts of p (log p - log q)."""
        own, other = (wide(logits[batch.valid]).log_softmax(-1) for logits in (student, teacher))
        return forward_kl(own, other)


class RouterZ(RouterLoss):
    """Square of the logsumexp of the student's router logits (ST-MoE, arXiv 2202.08906, eq. 5). No teacher.

    Args:
        layers: see `RouterLoss`.
    """

    needs_teacher = False

    def per_token(self, student: Tensor, teacher: Tensor, batch: Samples) -> Tensor:
        """logsumexp(logits)^2."""
        return wide(student[batch.valid]).logsumexp(-1).square()
