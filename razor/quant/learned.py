"""Learned step size: the scale is a parameter, trained beside the weights (LSQ, arXiv 1902.08153).

The scale of a group starts where its base format puts it. Its gradient is that of the rounding formula with
the rounding taken as the identity: within the range of the codes a number moves by code - x/s when s moves by
one, beyond it by the outermost code (equation 3). Latent weights beyond the range get no gradient
(equation 5). The gradient of s is scaled by 1 / sqrt(group * highest code) so that steps and weights move
in proportion (section 2.2; an optimizer that normalises gradients, as Adam does, undoes that).

What is trained is log(s): scales stay positive, and a step changes all of them by the same percentage, small
or large. They want a higher learning rate than weights and no weight decay: `lr_multiplier` says how much
higher, and `razor.parameter_groups` makes the optimizer's groups from it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from razor.errors import RazorError
from razor.quant.format import Format
from razor.quant.grouped import SCALE_RANGE, Grouped
from razor.spec import read

FIRST_SCALE = 0.01
"""Where the scale of a group starts if all of its weight is zero."""


class LearnedScale(Grouped):
    """A group-wise format whose scales are learned; until it is bound to a weight, its base format.

    Gradient: once bound, straight through within the range of the codes and none beyond; the scales' own by LSQ.

    Args:
        base: the format; it sets the first scales, and zero points for good.
        lr_multiplier: learning rate of log(scale), in units of the weights'.

    Raises:
        RazorError: the base has learned scales itself, or a multiplier that is not positive.
    """

    def __init__(self, base: Grouped, lr_multiplier: float = 10.0) -> None:
        read(Grouped, base, "base")
        read(float, lr_multiplier, "lr_multiplier")
        super().__init__(base.group, base.scale_dtype)
        if isinstance(base, LearnedScale):
            raise RazorError("A LearnedScale cannot be the base of another one.")
        if not lr_multiplier > 0:
            raise RazorError(f"LearnedScale lr_multiplier={lr_multiplier} must be above 0 (10 is usual).")
        self.base, self.lr_multiplier = base, float(lr_multiplier)
        self.codeword, self.lowest, self.highest = base.codeword, base.lowest, base.highest
        self.shift, self.zero_width, self.reach = base.shift, base.zero_width, base.reach
        self.log_scale: nn.Parameter | None
        self.zero: Tensor | None
        self.register_parameter("log_scale", None)
        self.register_buffer("zero", None)

    @property
    def straight_through(self) -> bool:  # noqa: D102 - see Format
        return self.log_scale is None

    @property
    def per_token(self) -> bool:  # noqa: D102
        return False  # its scales belong to the rows of a weight

    def bind(self, weight: Tensor) -> Format:
        """A copy with scales [groups of the weight, ..., 1] of its own."""
        base = self.base.bind(weight)
        assert isinstance(base, Grouped)
        bound = LearnedScale(base, self.lr_multiplier)
        scale, zero = self.base.fit(self.blocks(weight.detach()).float())
        bound.log_scale = nn.Parameter(self._awake(self.rounded_scale(scale)).log())
        bound.zero = zero
        return bound

    def _awake(self, scale: Tensor) -> Tensor:
        """A group of zeros gets the others' mean scale: with its own, all it learned would lie out of range."""
        if scale.is_meta or self.shift:  # without a zero among the levels a larger scale would be an error
            return scale
        alive = scale > SCALE_RANGE[self.scale_dtype][0]
        start = scale[alive].mean() if alive.any() else scale.new_tensor(FIRST_SCALE)
        return torch.where(alive, scale, self.rounded_scale(start))

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        return self.base.raw_scale(grouped) if self.log_scale is None else self.log_scale.detach().exp()

    def fit(self, grouped: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: D102
        if self.log_scale is None:
            return self.base.fit(grouped)
        return self.log_scale.detach().exp(), self.zero

    def soft_codes(self, place: Tensor) -> Tensor:  # noqa: D102
        return self.base.soft_codes(place)

    def learned(self) -> list[nn.Parameter]:  # noqa: D102
        return [] if self.log_scale is None else [self.log_scale]

    def moment(self) -> tuple[Any, ...]:  # noqa: D102
        own = self.log_scale
        return (*self.base.moment(), None if own is None else (own.data_ptr(), own._version))

    def gradients(self, latent: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        grouped, scale, shift = self.split(latent)
        flow = self.blocks(gradient).float()
        place = self.position(grouped, scale, shift)
        inside = (place >= self.lowest - self.reach) & (place <= self.highest + self.reach)
        code = self.soft_codes(place.clone())
        # d value / d scale: (code + shift) - x / s within the range, code + shift beyond it
        slope = torch.where(inside, code - place, code + shift)
        summed = (flow * slope).sum(-1, keepdim=True)
        largest = max(abs(self.lowest + self.shift), abs(self.highest + self.shift))
        steps = summed / math.sqrt(grouped.shape[-1] * largest)
        return (flow * inside).reshape(latent.shape), steps * scale
