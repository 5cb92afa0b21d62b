"""Stretched elastic levels: balanced codes for so few levels that zero is a waste (ParetoQ, arXiv 2502.02631).

With `k` levels the range [-alpha, alpha] is cut into k equal bins, and a number becomes the middle of its bin:

    x ~ alpha * (floor(clip(x / alpha, -1, 1) * k / 2 - shift, nearest) + shift) / (k / 2)

Two bits (k = 4) give -3/4, -1/4, 1/4, 3/4 of alpha: no zero, both signs alike, where symmetric int2 has only
three levels. Three levels give -2/3, 0, 2/3. In our terms s = 2 alpha / k and x ~ (code + shift) * s with
shift 1/2 for four levels and 0 for three. ParetoQ learns alpha, from max(abs(x)): see `LearnedScale`.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from razor.errors import RazorError
from razor.quant.codewords import Bits, Trits
from razor.quant.grouped import Group, Grouped, ScaleDtype
from razor.quant.search import least_squares_scale

Scale = Literal["absmax", "mean", "mse"]


class StretchedElastic(Grouped):
    """Three or four balanced levels; s = 2 alpha / levels.

    Gradient: straight through, everywhere.

    Args:
        levels: 3 (1.58 bits) or 4 (2 bits).
        group: see `Grouped`.
        scale: alpha is "absmax" = max(abs(x)), "mean" = 2 mean(abs(x)), or "mse" = least squared error.
        scale_dtype: see `Grouped`.
    """

    reach = 0.5  # the outer bins end half a step beyond the outer levels

    def __init__(
        self, levels: int, group: Group, scale: Scale = "absmax", scale_dtype: ScaleDtype = "float16"
    ) -> None:
        super().__init__(group, scale_dtype)
        if levels not in (3, 4):
            raise RazorError(f"Stretched elastic quantization of {levels} levels. Choices: 3, 4.")
        if scale not in get_args(Scale):
            raise RazorError(f"Stretched elastic scale '{scale}'. Choices: {', '.join(get_args(Scale))}.")
        self.levels, self.scale = levels, scale
        self.codeword = Trits() if levels == 3 else Bits(2, 2)
        self.lowest, self.highest, self.shift = (-1, 1, 0.0) if levels == 3 else (-2, 1, 0.5)

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        if self.scale == "mean":
            return grouped.abs().mean(-1, keepdim=True).mul_(4 / self.levels)
        largest = grouped.abs().amax(-1, keepdim=True).mul_(2 / self.levels)
        return least_squares_scale(self, grouped, largest) if self.scale == "mse" else largest
