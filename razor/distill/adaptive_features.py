"""Adaptive feature distillation (AFD): follow the teacher where it works hardest.

A layer whose output points the same way as its input does little. For each batch the teacher's layers are ranked
by the cosine similarity of output and input, averaged over tokens, and the student's hidden states are pulled to
the teacher's at the few layers that change the representation most (arXiv 2605.04062). Layer i's input is hidden
state i-1 and its output hidden state i, so that of the last one is taken after the final norm.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from razor.distill.batch import Batch
from razor.distill.features import Features
from razor.distill.head import wide
from razor.distill.trace import Shape, Trace
from razor.errors import RazorError, did_you_mean

RANKINGS = ("cosine", "l2", "variance")


class AdaptiveFeatures(Features):
    """Features at the `top` layers the teacher's own activity picks, averaged over them.

    Args:
        top: number of layers.
        ranking: "cosine" (lowest similarity of output and input first), "l2" (largest mean distance of output and
            input first) or "variance" (largest variance of the output over the width first).
        projection, relative: see `Features`.
    """

    def __init__(
        self,
        top: int = 3,
        ranking: Literal["cosine", "l2", "variance"] = "cosine",
        projection: Literal["none", "linear"] = "none",
        relative: bool = False,
    ) -> None:
        super().__init__(projection, relative)
        if top < 1:
            raise RazorError(f"top={top} must be at least 1 layer.")
        if ranking not in RANKINGS:
            raise RazorError(f"ranking={ranking!r}.{did_you_mean(str(ranking), RANKINGS)}")
        self.top, self.ranking = top, ranking

    def fit(self, student: Shape, teacher: Shape) -> None:
        """As `Features.fit`.

        Raises:
            RazorError: also if the teacher has less layers than `top`.
        """
        super().fit(student, teacher)
        if self.top > teacher.layers:
            raise RazorError(f"top={self.top}, but {teacher.name} has {teacher.layers} layers.")

    def teacher_layers(self) -> frozenset[int]:
        """All of them: the ranking looks at every layer."""
        return frozenset(range(self.teacher.layers + 1))

    @torch.no_grad()
    def select(self, teacher: Trace, batch: Batch) -> list[int]:
        """Indices of the `top` most active layers, most active first; padding does not count."""
        attended = batch.documents >= 0
        count = attended.sum().clamp(min=1)
        layers = [i for i in sorted(teacher.states) if i > 0]
        means = [
            torch.where(attended, self._activity(teacher.states[i - 1], teacher.states[i]), 0.0).sum() / count
            for i in layers
        ]
        activity = dict(zip(layers, torch.stack(means).tolist(), strict=True))
        return sorted(activity, key=lambda i: (-activity[i], i))[: self.top]

    def _activity(self, before: Tensor, after: Tensor) -> Tensor:
        """[B, T]."""
        before, after = wide(before), wide(after)
        if self.ranking == "cosine":
            return -F.cosine_similarity(before, after, dim=-1)
        if self.ranking == "l2":
            return (after - before).norm(dim=-1)
        return after.var(dim=-1)
