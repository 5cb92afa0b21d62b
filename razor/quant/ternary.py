"""Ternary weights: -s, 0 or s (1.58 bits).

The scale is `factor` times the mean magnitude of the group. The paper uses 2 (arXiv 2605.04062): for a
Gaussian the threshold then lies at 0.80 and the level at 1.60 standard deviations. BitNet b1.58
(arXiv 2402.17764) uses 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from razor.errors import RazorError
from razor.quant.format import Shape
from razor.quant.grouped import Grouped
from razor.quant.packing import bytes_of_trits, pack_trits, unpack_trits

TRIT_BITS = 1.58
"""Bits of a trit by the paper's accounting; log2(3) = 1.585, stored at 1.6."""


class Ternary(Grouped):
    """Codes -1, 0, 1; scale = `factor` * mean(abs(x)) of the group.

    Gradient: straight through, everywhere.
    """

    limit = 1

    def __init__(self, group: int, factor: float = 2.0) -> None:
        super().__init__(group)
        if not factor > 0:
            raise RazorError(f"Ternary scale factor '{factor}' must be positive (paper: 2, BitNet: 1).")
        self.factor = float(factor)

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        return grouped.abs().mean(-1, keepdim=True).mul_(self.factor)

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return TRIT_BITS * math.prod(shape)

    def pack_values(self, values: Tensor) -> Tensor:  # noqa: D102
        return pack_trits(values + 1)

    def unpack_values(self, packed: Tensor, columns: int) -> Tensor:  # noqa: D102
        return unpack_trits(packed, columns).char() - 1

    def bytes_per_row(self, columns: int) -> int:  # noqa: D102
        return bytes_of_trits(columns)

    @property
    def label(self) -> str:  # noqa: D102
        return f"{TRIT_BITS}"
