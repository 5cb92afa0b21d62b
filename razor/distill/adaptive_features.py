"""Adaptive feature distillation (AFD): follow the teacher where it works hardest.

A layer whose output points the same way as its input does little. For each batch the teacher's layers are ranked
by the cosine similarity of output and input, averaged over tokens, and the student's hidden states are pulled to
the teacher's at the few layers that change the representation most (arXiv 2605.04062). Layer i's input is hidden
state i-1 and its output hidden state i, so that of the last one is taken after the final norm.

Where layers change the shape of what goes through them, as the stages of a convolutional network do, output and
input have no cosine; their linear CKA over the images of a micro-batch takes its place (`similarity`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from razor.distill.batch import Samples
from razor.distill.features import Features
from razor.distill.head import wide
from razor.distill.similarity import linear_cka
from razor.distill.trace import Shape, Trace
from razor.errors import RazorError, did_you_mean

RANKINGS = ("cosine", "l2", "variance", "cka")
OF_ONE_SHAPE = ("cosine", "l2")
"""Rankings that compare output and input number by number."""


class AdaptiveFeatures(Features):
    """Features at the `top` layers the teacher's own activity picks, averaged over them.

    Args:
        top: number of layers.
        ranking: "cosine" (lowest similarity of output and input first), "l2" (largest mean distance of output and
            input first), "variance" (largest variance of the output over the width first) or "cka" (lowest linear
            CKA of output and input first: for layers that change the width).
        projection, relative, tower: see `Features`.
    """

    def __init__(
        self,
        top: int = 3,
        ranking: Literal["cosine", "l2", "variance", "cka"] = "cosine",
        projection: Literal["none", "linear"] = "none",
        relative: bool = False,
        tower: str | None = None,
    ) -> None:
        super().__init__(projection, relative, tower)
        if top < 1:
            raise RazorError(f"top={top} must be at least 1 layer.")
        if ranking not in RANKINGS:
            raise RazorError(f"ranking={ranking!r}.{did_you_mean(str(ranking), RANKINGS)}")
        self.top, self.ranking = top, ranking

    def fit(self, student: Shape, teacher: Shape) -> None:
        """As `Features.fit`.

        Raises:
            RazorError: also if the teacher has less layers than `top`, or they have no such ranking.
        """
        super().fit(student, teacher)
        teacher = self.teacher
        if self.top > teacher.layers:
            raise RazorError(f"top={self.top}, but {teacher.name} has {teacher.layers} layers.")
        shapes = {(teacher.width_of(state), teacher.places_of(state)) for state in range(teacher.layers + 1)}
        if self.ranking in OF_ONE_SHAPE and len(shapes) > 1:
            raise RazorError(
                f"ranking={self.ranking} compares a layer's output with its input number by number, and layers of "
                f"{teacher.name} change their shape (widths {', '.join(map(str, teacher.widths))}): ranking=cka."
            )

    def teacher_layers(self) -> frozenset[int]:
        """All of them: the ranking looks at every layer."""
        return frozenset(range(self.teacher.layers + 1))

    @torch.no_grad()
    def select(self, teacher: Trace, batch: Samples) -> list[int]:
        """Indices of the `top` most active layers, most active first; padding does not count."""
        states, inner = self.recorded(teacher), self.samples(batch)
        layers = [i for i in sorted(states) if i > 0]
        means = [self._mean(states[i - 1], states[i], inner) for i in layers]
        activity = dict(zip(layers, torch.stack(means).tolist(), strict=True))
        return sorted(activity, key=lambda i: (-activity[i], i))[: self.top]

    def _mean(self, before: Tensor, after: Tensor, batch: Samples) -> Tensor:
        """Activity of a layer in this batch, a scalar."""
        if self.ranking == "cka":
            return -linear_cka(batch.examples(before), batch.examples(after))
        # a tower's config does not tell how many places its layers leave
        if self.ranking in OF_ONE_SHAPE and before.shape != after.shape:
            raise RazorError(
                f"ranking={self.ranking} compares a layer's output with its input number by number, and a layer of "
                f"{self.teacher.name} makes {list(after.shape)} of {list(before.shape)}: ranking=cka."
            )
        attended = batch.inside(after.shape[1]).documents >= 0
        count = attended.sum().clamp(min=1)
        return torch.where(attended, self._activity(before, after), 0.0).sum() / count

    def _activity(self, before: Tensor, after: Tensor) -> Tensor:
        """[B, T]."""
        before, after = wide(before), wide(after)
        if self.ranking == "cosine":
            return -F.cosine_similarity(before, after, dim=-1)
        if self.ranking == "l2":
            return (after - before).norm(dim=-1)
        return after.var(dim=-1)
