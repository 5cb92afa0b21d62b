"""Every weight is a matrix to a format: rows of inputs that share scales.

A format groups weights along the input dimension, so it has to know which one that is. A linear layer
stores [out, in] and needs no help; a convolution stores [out, in, *kernel], whose inputs are all of one
filter; Transformers' `Conv1D` (GPT-2) stores [in, out]; the experts of a mixture are stacked into one tensor
[experts, out, in], or with the last two exchanged. A `MatrixView` turns each into [rows, columns] and back
without moving data where it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MatrixView:
    """How a weight is seen as [rows, columns].

    Attributes:
        turned: the last two dimensions are stored as [in, out] and are exchanged first.
        leading: so many leading dimensions (after the turn) make up the rows; the others are the columns.
    """

    turned: bool = False
    leading: int = 1

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [rows, columns]."""
        turned = weight.mT if self.turned else weight
        return turned if turned.ndim == 2 else turned.reshape(self.shape(weight.shape))

    def back(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """A matrix [rows, columns] in the weight's own shape."""
        if self.turned:
            return matrix.reshape(*shape[:-2], shape[-1], shape[-2]).mT
        return matrix.reshape(tuple(shape))

    def shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of a weight of this shape."""
        turned = (*shape[:-2], shape[-1], shape[-2]) if self.turned else tuple(shape)
        return math.prod(turned[: self.leading]), math.prod(turned[self.leading :])
