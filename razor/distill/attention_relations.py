"""Attention relations: the student's tokens should relate to each other as the teacher's do (MiniLMv2).

Comparing attention weights wants equal heads on both sides, and an attention that hands its weights out, which no
fast one does. Relations among queries, among keys and among values need neither. Where head counts differ, the
heads are put side by side and cut anew into a number of *relation heads* that both models have.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import Tensor

from razor.distill.batch import Samples
from razor.distill.layers import ChosenLayers, Layers
from razor.distill.relations import relation_kl
from razor.distill.trace import AttentionInputs, Shape
from razor.errors import RazorError, did_you_mean

Relation = Literal["queries", "keys", "values"]
RELATIONS: tuple[Relation, ...] = ("queries", "keys", "values")


class AttentionRelations(ChosenLayers):
    """KL(teacher || student) of relations among queries, keys and values, their weighted sum (MiniLMv2, eq. 2-3).

    Args:
        layers: of the teacher; MiniLMv2 takes the last, or of a large teacher one at about 7/8 of its depth.
        relations: which, or the weight of each; in MiniLMv2 all three with weight 1.
        heads: relation heads, which must divide the width of all heads together in either model; by default the
            most that no head is cut for: the largest common divisor of the two models' head counts.
    """

    record = "attention"
    what = "attention whose inputs can be recorded"

    def __init__(
        self,
        layers: Layers = (-1,),
        relations: Sequence[Relation] | Mapping[Relation, float] = RELATIONS,
        heads: int | None = None,
    ) -> None:
        super().__init__(layers)
        if isinstance(relations, str) or not relations:
            raise RazorError(
                f"relations={relations!r} must be a list of {', '.join(RELATIONS)}, or their weights."
            )
        weights: dict[Relation, float] = (
            dict(relations) if isinstance(relations, Mapping) else dict.fromkeys(relations, 1.0)
        )
        for name, weight in weights.items():
            if name not in RELATIONS:
                raise RazorError(f"relations names {name!r}.{did_you_mean(str(name), RELATIONS)}")
            if not 0 <= weight < float("inf"):
                raise RazorError(f"relations.{name}={weight} must be 0 or more.")
        if not any(weights.values()):
            raise RazorError("relations: every weight is 0, so nothing would be compared.")
        if heads is not None and heads < 1:
            raise RazorError(f"heads={heads} must be at least 1.")
        self.relations, self.heads = relations, heads
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}

    def available(self, shape: Shape) -> Collection[int]:  # noqa: D102
        return shape.attention

    def fit(self, student: Shape, teacher: Shape) -> None:  # noqa: D102
        super().fit(student, teacher)
        for shape in (student, teacher):
            for name in self._weights:
                count = shape.heads if name == "queries" else shape.kv_heads
                self._check_heads(name, count * shape.head_dim, shape.name)

    def per_token(self, student: AttentionInputs, teacher: AttentionInputs, batch: Samples) -> Tensor:
        """Sum of the weighted relations' KL, each the mean over relation heads, nats."""
        parts = []
        for name, weight in self._weights.items():
            own, other = getattr(student, name), getattr(teacher, name)
            heads = self.heads or math.gcd(own.shape[1], other.shape[1])
            split = [
                self._split(name, own, heads, self.student),
                self._split(name, other, heads, self.teacher),
            ]
            parts.append(weight * relation_kl(split[0], split[1], batch))
        return sum(parts[1:], parts[0])

    def _split(self, name: str, vectors: Tensor, heads: int, shape: Shape) -> Tensor:
        """[B, heads, T, width] of the model's heads -> the same of relation heads."""
        if vectors.shape[1] == heads:
            return vectors
        self._check_heads(name, vectors.shape[1] * vectors.shape[3], shape.name)
        return vectors.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)

    def _check_heads(self, name: str, width: int, model: str) -> None:
        if self.heads is not None and width % self.heads:
            raise RazorError(
                f"heads={self.heads} does not divide the width of the {name} of {model}, {width} for all heads "
                "together."
            )
