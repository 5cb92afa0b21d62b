"""Codes visited again: each set to the best one, given all others (coordinate descent).

GPTQ decides a column once, before those to its right are known. When all codes are there, a column can be asked
again: with the others fixed, the error |(W - Wq) X|^2 of a row is a parabola in this one weight, whose minimum lies
at q + (row of (W - Wq) H)[c] / H[c, c], with H the Gram matrix of the inputs; its nearest level is the best code
there is (CDQuant, arXiv 2406.17542, section 3, one weight at a time). No visit makes the error larger, and no text
is needed beyond the Gram matrix that is there. At two bits and less the error of a layer's outputs falls by a sixth
to a quarter (docs/start.md).

A weight's latent becomes the minimum itself, and not its level: where in the code's cell it lies then says how
nearly another code was as good, which is what training should know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from razor.start.solve import Part, Solved, bounds_of, damped


def polished(
    weight: Tensor, found: Solved, parts: Sequence[Part], gram: Tensor, damping: float, block: int
) -> Solved:
    """One visit to every column, at the scales that were found.

    Args:
        weight: [rows, columns] fp32 that is to be met.
        found: codes and scales for it.
        parts: see `solve`.
        gram: X X^T of the inputs, up to a factor.
        damping: added to its diagonal, in units of the mean there.
        block: columns whose changes are handed on together.
    """
    gram = damped(gram.float(), damping)
    size = weight.shape[1] // found.scales.shape[1]
    lowest, highest = bounds_of(parts, weight)
    values, weights = found.values.T.contiguous(), found.weights.T.contiguous()
    slope = gram @ (weight.T - values)  # [columns, rows], half of the descent
    for start in range(0, len(values), block):
        stop = min(start + block, len(values))
        inner, local = gram[start:stop, start:stop], slope[start:stop].clone()
        before = values[start:stop].clone()
        for column in range(start, stop):
            place, group = column - start, column // size
            scale, shift = found.scales[:, group], found.shifts[:, group]
            best = values[column] + local[place] / gram[column, column]
            # the formula of razor.quant.Grouped, with bounds of each row
            code = torch.div(best, scale).sub_(shift).round_()
            level = torch.clamp(code, lowest, highest).add_(shift).mul_(scale)
            local.addr_(inner[:, place], level - values[column], alpha=-1)
            weights[column], values[column] = best, level
        slope.addmm_(gram[:, start:stop], values[start:stop] - before, alpha=-1)
    return Solved(weights.T.contiguous(), values.T.contiguous(), found.scales, found.shifts)
