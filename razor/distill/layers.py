"""Which layers a loss compares, as a person writes them.

Layers count from 1 as their outputs stand among Transformers' hidden states, or from the end, -1 being the last.
The numbers are the teacher's; the student's counterpart lies at the same part of its depth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

from razor.distill.loss import LayerLoss
from razor.distill.trace import Shape
from razor.errors import RazorError

Layers = Literal["all"] | Sequence[int]
"""All layers, or a list of their numbers."""


class ChosenLayers(LayerLoss):
    """A loss on a fixed choice of those layers that have something.

    Args:
        layers: "all" that have it, or numbers; of the teacher's, or the student's if no teacher is looked at.
    """

    what: ClassVar[str]
    """What a layer must have, for error texts."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        check_layers(layers)
        self.layers = layers
        self._chosen: list[int] = []

    @abstractmethod
    def available(self, shape: Shape) -> Collection[int]:
        """The layers of a model that have it, from 1."""

    def fit(self, student: Shape, teacher: Shape) -> None:  # noqa: D102
        teacher = teacher if self.needs_teacher else student
        super().fit(student, teacher)
        self._chosen = numbered(self.layers, self.available(teacher), teacher, self.what)
        have = self.available(student)
        for layer in self._chosen:
            if (own := self.counterpart(layer)) not in have:
                raise RazorError(
                    f"layer {layer} of {teacher.name} is compared with layer {own} of {student.name}, which has "
                    f"no {self.what}. {_those(have)}"
                )

    def teacher_layers(self) -> frozenset[int]:  # noqa: D102
        self._fitted()
        return frozenset(self._chosen)


def check_layers(layers: Layers) -> None:
    """Raise RazorError unless it is "all", or a list of different whole numbers, at least one."""
    if layers == "all":
        return
    if isinstance(layers, str) or not layers:
        raise RazorError(f"layers={layers!r} must be 'all' or a list of numbers, such as [-1].")
    if wrong := [n for n in layers if type(n) is not int]:
        raise RazorError(f"layers={list(layers)}: {wrong[0]!r} is no whole number.")
    if len(set(layers)) < len(layers):
        raise RazorError(f"layers={list(layers)} names a layer twice.")


def numbered(layers: Layers, available: Collection[int], shape: Shape, what: str) -> list[int]:
    """The layers' numbers, counted from 1, in the order given.

    Args:
        layers: see `Layers`.
        available: those that can be chosen; 0 among them if the embedding's output can.
        shape: of the model that they are layers of.
        what: what an available layer has.

    Raises:
        RazorError: none is available, one is not, or one is named twice.
    """
    if not available:
        raise RazorError(f"{shape.name} has no {what}.")
    if layers == "all":
        return sorted(available)
    found: list[int] = []
    for layer in layers:
        assert isinstance(layer, int)
        number = layer if layer >= 0 else shape.layers + 1 + layer
        if not (layer >= 0 or number >= 1) or number > shape.layers:
            raise RazorError(
                f"layers={list(layers)}: {shape.name} has {shape.layers} layers, counted from 1."
            )
        if number not in available:
            raise RazorError(
                f"layers={list(layers)}: layer {number} of {shape.name} has no {what}. {_those(available)}"
            )
        if number in found:
            raise RazorError(f"layers={list(layers)} names layer {number} of {shape.layers} twice.")
        found.append(number)
    return found


def _those(available: Collection[int]) -> str:
    return f"Layers that do: {', '.join(map(str, sorted(available))) or 'none'}."
