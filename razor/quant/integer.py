"""Symmetric integers: 2^(b-1) - 1 levels on either side of zero.

By default the scale is the largest magnitude of the group / limit, so nothing is clipped: int4 has codes
-7..7, int8 -127..127 (arXiv 2605.04062). The same format serves weights, and, recomputed for each token,
activations and the KV cache ("dynamic" quantization). At few bits clipping the largest is better: `mean` is
where LSQ starts (arXiv 1902.08153, section 2.1), `mse` searches for the least squared error.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codewords import Bits
from razor.quant.grouped import Group, Grouped, ScaleDtype
from razor.quant.search import least_squares_scale

Scale = Literal["absmax", "mean", "mse"]


class Integer(Grouped):
    """`width`-bit symmetric integers with codes -limit..limit, limit = 2^(width-1) - 1.

    Gradient: straight through, everywhere. Stored as unsigned codes, offset by 2^(width-1).

    Args:
        width: bits of a code, 2..8.
        group: see `Grouped`.
        scale: "absmax" = max(abs(x)) / limit; "mean" = 2 mean(abs(x)) / sqrt(limit); "mse" = least squared error.
        scale_dtype: see `Grouped`.
    """

    def __init__(
        self, width: int, group: Group, scale: Scale = "absmax", scale_dtype: ScaleDtype = "float16"
    ) -> None:
        super().__init__(group, scale_dtype)
        if width not in range(2, 9):
            raise RazorError(f"Integer format of width '{width}': choose a whole number of bits from 2 to 8.")
        if scale not in get_args(Scale):
            raise RazorError(f"Integer scale '{scale}'. Choices: {', '.join(get_args(Scale))}.")
        self.width, self.scale, self.codeword = width, scale, Bits(width, 2 ** (width - 1))
        self.highest = 2 ** (width - 1) - 1
        self.lowest = -self.highest

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        if self.scale == "mean":
            return grouped.abs().mean(-1, keepdim=True).mul_(2 / math.sqrt(self.highest))
        # two reductions are faster than one of abs(), which would be a whole tensor more
        ends = grouped.amax(-1, keepdim=True), grouped.amin(-1, keepdim=True).neg_()
        largest = torch.maximum(*ends).div_(self.highest)
        return least_squares_scale(self, grouped, largest) if self.scale == "mse" else largest
