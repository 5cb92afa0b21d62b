"""Adaptive feature distillation (AFD): follow the teacher where it works hardest.

A layer whose output points the same way as its input does little. For each batch the teacher's layers are
ranked by the cosine similarity of output and input, averaged over tokens, and the student's hidden states
are pulled, by mean squared error, to the teacher's at the few layers that change the representation most
(arXiv 2605.04062). Layer i's input is hidden state i-1 and its output hidden state i as Transformers lists
them, so the last one is taken after the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from razor.distill.loss import FeatureLoss
from razor.errors import RazorError

RANKINGS = ("cosine", "l2", "variance")


class AdaptiveFeatures(FeatureLoss):
    """Mean squared error at the `top` layers the teacher's own activity picks, averaged over them.

    Args:
        top: number of layers.
        ranking: "cosine" (lowest similarity of output and input first), "l2" (largest mean distance of output and
            input first) or "variance" (largest variance of the output over the width first).
    """

    def __init__(self, top: int = 3, ranking: str = "cosine") -> None:
        super().__init__()
        if top < 1:
            raise RazorError(f"AFD's top is '{top}': it must be at least 1 layer (distill.losses.afd.top=3).")
        if ranking not in RANKINGS:
            raise RazorError(f"AFD's ranking is '{ranking}'. Choices: {', '.join(RANKINGS)}.")
        self.top, self.ranking = top, ranking

    def teacher_layers(self, layers: int) -> set[int]:
        """All of them: the ranking looks at every layer."""
        if self.top > layers:
            raise RazorError(f"AFD's top is {self.top} but the teacher has {layers} layers.")
        return set(range(layers + 1))

    def _activity(self, before: Tensor, after: Tensor) -> Tensor:
        before, after = before.float(), after.float()
        if self.ranking == "cosine":
            return -F.cosine_similarity(before, after, dim=-1).mean()
        if self.ranking == "l2":
            return (after - before).norm(dim=-1).mean()
        return after.var(dim=-1).mean()

    @torch.no_grad()
    def select(self, states: Mapping[int, Tensor], attended: Tensor) -> list[int]:
        """Indices of the `top` most active layers, most active first; padding does not count."""
        seen = {index: state[attended] for index, state in states.items()}
        activity = {i: float(self._activity(seen[i - 1], seen[i])) for i in sorted(seen) if i > 0}
        return sorted(activity, key=lambda i: (-activity[i], i))[: self.top]

    def per_token(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the width of the squared difference: [n, width] -> [n]."""
        return (student.float() - teacher.float()).square().mean(-1)
