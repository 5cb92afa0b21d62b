"""A scale by trying: the one with the least squared error among fractions of the largest.

A scale that reaches the largest weight of a group wastes codes on it; a smaller one clips a few weights
and is finer for all the others. Which is best depends on the weights, so a grid is tried and the error of
each group is counted as it would be stored, the scale rounded to 16 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from razor.quant.grouped import Grouped

STEPS, SMALLEST_FRACTION = 33, 0.2

BLOCK = 1 << 18
"""Weights that are searched at once, about a megabyte."""


def least_squares_scale(
    format: Grouped, grouped: Tensor, largest: Tensor, shift: Tensor | float | None = None
) -> Tensor:
    """The best of `STEPS` fractions of a scale for each group.

    Args:
        format: says how numbers become codes.
        grouped: [..., groups, group] fp32.
        largest: [..., groups, 1] scale that clips nothing.
        shift: see `Grouped`; default the format's.

    Returns:
        [..., groups, 1], not yet rounded to 16 bits.
    """
    shift = format.shift if shift is None else shift
    best = torch.empty_like(largest)
    # A few rows at a time: the grid goes over them many times while they are in the processor's cache.
    rows = max(1, BLOCK * len(grouped) // max(1, grouped.numel()))
    for start in range(0, len(grouped), rows):
        part = slice(start, start + rows)
        own = shift[part] if isinstance(shift, Tensor) else shift
        best[part] = _best_of_grid(format, grouped[part], largest[part], own)
    return best


def _best_of_grid(format: Grouped, grouped: Tensor, largest: Tensor, shift: Tensor | float) -> Tensor:
    best, least = largest, torch.full_like(largest, float("inf"))
    for fraction in torch.linspace(1.0, SMALLEST_FRACTION, STEPS).tolist():
        candidate = largest * fraction
        stored = format.rounded_scale(candidate)
        codes = format.round_(format.position(grouped, stored, shift))
        error = format.value_(codes, stored, shift).sub_(grouped).square_().sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, candidate, best), torch.where(better, error, least)
    return best
