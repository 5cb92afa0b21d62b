"""The z-loss of routers: keep their logits small, so that they do not drift where rounding makes them unstable."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from razor.distill.batch import Batch
from razor.distill.head import wide
from razor.distill.layers import ChosenLayers, Layers
from razor.distill.trace import Shape


class RouterZ(ChosenLayers):
    """Square of the logsumexp of the student's router logits (ST-MoE, arXiv 2202.08906, eq. 5). No teacher.

    Args:
        layers: "all" that have a router, or numbers of the student's.
    """

    needs_teacher = False
    record = "routers"
    what = "router whose logits can be recorded"

    def __init__(self, layers: Layers = "all") -> None:
        super().__init__(layers)

    def available(self, shape: Shape) -> Collection[int]:  # noqa: D102
        return shape.routers

    def per_token(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """logsumexp(logits)^2."""
        return wide(student[batch.valid]).logsumexp(-1).square()
