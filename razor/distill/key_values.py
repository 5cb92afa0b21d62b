"""What the KV cache holds: keep the student's rounded keys and values near the teacher's.

A cache in few bits adds an error to every key and value that later tokens attend to. This loss is that error,
measured where attention reads it: after rotary embedding and rounding.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from razor.distill.batch import Samples
from razor.distill.head import wide
from razor.distill.layers import ChosenLayers, Layers
from razor.distill.trace import AttentionInputs, Shape
from razor.errors import RazorError

FLOOR = 1e-6
"""The least mean square to divide by: a teacher's vector of zeros makes no infinite loss."""


class KeyValues(ChosenLayers):
    """Relative squared error of keys and values.

    For a token with keys k and values v of all heads, primes on the teacher's:

        1/2 mean((k - k')^2) / mean(k'^2)  +  1/2 mean((v - v')^2) / mean(v'^2)

    so layers of large and small numbers count alike, and a token's loss depends on no other token.

    Args:
        layers: "all" that have attention, or numbers of the teacher's.
    """

    record = "attention"
    what = "attention whose inputs can be recorded"

    def __init__(self, layers: Layers = "all") -> None:
        super().__init__(layers)

    def available(self, shape: Shape) -> Collection[int]:  # noqa: D102
        return shape.attention

    def fit(self, student: Shape, teacher: Shape) -> None:  # noqa: D102
        super().fit(student, teacher)
        self._check((student.kv_heads, student.head_dim), (teacher.kv_heads, teacher.head_dim))

    def per_token(self, student: AttentionInputs, teacher: AttentionInputs, batch: Samples) -> Tensor:
        """The mean of the relative errors of keys and of values."""
        for own, other in ((student.keys, teacher.keys), (student.values, teacher.values)):
            self._check((own.shape[1], own.shape[3]), (other.shape[1], other.shape[3]))
        keys = _relative(student.keys, teacher.keys, batch.valid)
        return (keys + _relative(student.values, teacher.values, batch.valid)) / 2

    def _check(self, own: tuple[int, int], other: tuple[int, int]) -> None:
        if own != other:
            raise RazorError(
                f"{self.student.name} keeps {own[0]} KV heads of {own[1]}, {self.teacher.name} {other[0]} of "
                f"{other[1]}: keys and values can be compared if these are equal. AttentionRelations compares any."
            )


def _relative(own: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    own, other = (wide(x.transpose(1, 2)[valid]).flatten(1) for x in (own, other))
    return (own - other).square().mean(-1) / other.square().mean(-1).clamp_min(FLOOR)
