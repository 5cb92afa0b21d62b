"""Ternary weights: -s, 0 or s (1.58 bits).

The scale is `factor` times the mean magnitude of the group. The paper uses 2 (arXiv 2605.04062): for a
Gaussian the threshold then lies at 0.80 and the level at 1.60 standard deviations. BitNet b1.58
(arXiv 2402.17764) uses 1. The least-squares ternary (arXiv 1605.04711, equation 5) has threshold 0.61 and level
1.22: if the k largest magnitudes become s, the best s is their mean, and the best k is the one that maximises
(sum of the k largest)^2 / k. Its threshold is s / 2, so codes are found by rounding as everywhere.

Hard rounding from the first step on is a shock. With `anneal` the three levels are approached softly during
that part of the run: with p = x / s the code is sigmoid((p - 1/2) / t) - sigmoid((-p - 1/2) / t), and the
temperature t falls linearly to nothing. Only training sees that; whatever is scored, saved or exported is ternary.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codewords import Trits
from razor.quant.format import Format
from razor.quant.grouped import Group, Grouped, ScaleDtype
from razor.spec import read

Scale = Literal["mean", "mse"]


class Ternary(Grouped):
    """Codes -1, 0, 1.

    Gradient: straight through, everywhere.

    Args:
        group: see `Grouped`.
        factor: of the mean magnitude, for scale "mean".
        scale: "mean" = factor * mean(abs(x)); "mse" = least squared error.
        anneal: part of the run, 0..1, during which rounding is softened; 0: never. The training loop then has to
            tell how far it is: `razor.quant.set_progress(model, step / steps)` before each step.
        temperature: of the softened rounding at the start, in units of the scale.
        scale_dtype: see `Grouped`.
    """

    lowest, highest, codeword = -1, 1, Trits()

    def __init__(
        self,
        group: Group,
        factor: float = 2.0,
        scale: Scale = "mean",
        anneal: float = 0.0,
        temperature: float = 0.3,
        scale_dtype: ScaleDtype = "float16",
    ) -> None:
        super().__init__(group, scale_dtype)
        for key, value in (("factor", factor), ("anneal", anneal), ("temperature", temperature)):
            read(float, value, key)
        if not 0 < factor < math.inf:
            raise RazorError(
                f"Ternary scale factor '{factor}' must be a positive number (paper: 2, BitNet: 1)."
            )
        if scale not in get_args(Scale):
            raise RazorError(f"Ternary scale '{scale}'. Choices: {', '.join(get_args(Scale))}.")
        if not 0 <= anneal <= 1 or not temperature > 0:
            raise RazorError(
                f"Ternary anneal={anneal} must lie in 0..1 and temperature={temperature} be above 0."
            )
        self.factor, self.scale = float(factor), scale
        self.anneal, self.temperature = float(anneal), float(temperature)
        self.progress: float | None = None

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        if self.scale == "mean":
            return grouped.abs().mean(-1, keepdim=True).mul_(self.factor)
        sums = grouped.abs().sort(-1, descending=True).values.cumsum_(-1)
        means = sums / torch.arange(1, grouped.shape[-1] + 1, device=grouped.device)
        best = (sums * means).argmax(-1, keepdim=True)  # (sum of the k largest)^2 / k
        return means.gather(-1, best)

    def bind(self, weight: Tensor) -> Format:
        """A copy of its own for an annealed weight: models that share a plan may train at different times."""
        return Format.from_spec(self.spec()) if self.anneal else self

    def softness(self) -> float:
        """The temperature now; 0: hard rounding."""
        if not self.anneal or not self.training:
            return 0.0
        if self.progress is None:
            raise RazorError(
                f"A ternary format has anneal={self.anneal:g}, but nobody told it how far training is: call "
                "razor.quant.set_progress(model, step / steps) before each step."
            )
        return self.temperature * max(0.0, 1.0 - self.progress / self.anneal)

    def moment(self) -> tuple[Any, ...]:  # noqa: D102 - see Format
        return (self.softness(),) if self.anneal else ()

    def soft_codes(self, place: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        softness = self.softness()
        if not softness:
            return self.round_(place)
        return torch.sigmoid((place - 0.5) / softness) - torch.sigmoid((-place - 0.5) / softness)
