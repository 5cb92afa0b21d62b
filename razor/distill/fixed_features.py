"""Features at layers that a person chooses, each with a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from razor.distill.features import Features
from razor.distill.layers import Layers, check_layers, numbered
from razor.distill.trace import Shape
from razor.errors import RazorError


class FixedFeatures(Features):
    """Features at chosen layers, the weighted mean over them.

    Args:
        layers: of the teacher, or "all"; 0 is the embedding's output, -1 the last layer's, after the final norm.
        weights: one for each layer; all the same by default.
        projection, relative, tower: see `Features`.
    """

    def __init__(
        self,
        layers: Layers = (-1,),
        weights: Sequence[float] | None = None,
        projection: Literal["none", "linear"] = "none",
        relative: bool = False,
        tower: str | None = None,
    ) -> None:
        super().__init__(projection, relative, tower)
        check_layers(layers)
        if weights is not None:
            if layers == "all" or len(weights) != len(layers):
                raise RazorError(f"weights={list(weights)} must be one number for each of layers={layers}.")
            if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
                raise RazorError(f"weights={list(weights)} must be 0 or more, and not all 0.")
        self.layers, self.weights = layers, weights
        self._by_layer: dict[int, float] = {}

    def fit(self, student: Shape, teacher: Shape) -> None:
        """As `Features.fit`.

        Raises:
            RazorError: also if the teacher lacks a layer.
        """
        super().fit(student, teacher)
        chosen = numbered(self.layers, range(self.teacher.layers + 1), self.teacher, "hidden state")
        self._by_layer = dict(zip(chosen, self.weights or [1.0] * len(chosen), strict=True))

    def teacher_layers(self) -> frozenset[int]:  # noqa: D102
        self._fitted()
        return frozenset(layer for layer, weight in self._by_layer.items() if weight > 0)

    def layer_weight(self, layer: int) -> float:  # noqa: D102
        return self._by_layer[layer]
