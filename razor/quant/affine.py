"""Asymmetric integers: all 2^b codes, and a zero point that says which of them is zero.

Where the weights of a group lean to one side, symmetric codes waste levels on the other. Here the codes span
the group from its least to its largest weight: `x ~ (code - zero) * s` with codes 0..2^b - 1
(Jacob et al., arXiv 1712.05877, equation 1). The zero point is itself one of the codes, so zero stays exactly
zero, and costs another b bits a group.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from razor.errors import RazorError
from razor.quant.codewords import Bits
from razor.quant.grouped import Group, Grouped, ScaleDtype
from razor.quant.search import least_squares_scale

Scale = Literal["minmax", "mse"]


class Affine(Grouped):
    """`width`-bit asymmetric integers; s = (max(x, 0) - min(x, 0)) / (2^width - 1), zero = round(-min(x, 0) / s).

    Gradient: straight through, everywhere. Zero points are stored in `width` bits.

    Args:
        width: bits of a code, 2..4.
        group: see `Grouped`.
        scale: "minmax" clips nothing; "mse" = least squared error around the zero point of minmax.
        scale_dtype: see `Grouped`.
    """

    lowest = 0

    def __init__(
        self, width: int, group: Group, scale: Scale = "minmax", scale_dtype: ScaleDtype = "float16"
    ) -> None:
        super().__init__(group, scale_dtype)
        if width not in range(2, 5):
            raise RazorError(f"Affine format of width '{width}': choose a whole number of bits from 2 to 4.")
        if scale not in get_args(Scale):
            raise RazorError(f"Affine scale '{scale}'. Choices: {', '.join(get_args(Scale))}.")
        self.width, self.scale, self.codeword = width, scale, Bits(width, 0)
        self.highest, self.zero_width = 2**width - 1, width

    def fit(self, grouped: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102 - see Grouped
        least = grouped.amin(-1, keepdim=True).clamp_(max=0)
        # halves: the distance of two fp32 numbers may be more than fp32 holds
        span = (grouped.amax(-1, keepdim=True).clamp_(min=0) / 2 - least / 2).div_(self.highest / 2)
        stored = self.rounded_scale(span)
        zero = least.neg().div_(stored).round_().clamp_(self.lowest, self.highest)
        return least_squares_scale(self, grouped, span, -zero) if self.scale == "mse" else span, zero

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102
        return self.fit(grouped)[0]
