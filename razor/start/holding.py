"""Formats that keep the scales they are given.

A weight's codes always come from its latent weight, and so does the scale, by the rule of its format: the largest
magnitude, a multiple of the mean. Whoever found better codes and scales cannot hand them on by a latent weight
alone, since the rule would find another scale in it. `LearnedScale` has the scale beside the weight, as a
parameter; it stores what its base format stores, bit for bit. So that is what a start writes into.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant import Format, Grouped, LearnedScale, Placement, Plan, RowMix
from razor.recipe import PlanFile, QuantRecipe
from razor.start.solve import Part, Solved


def holding(recipe: QuantRecipe | PlanFile, lr_multiplier: float = 10.0) -> QuantRecipe | PlanFile:
    """The same recipe, with weights' formats of a scale by rule wrapped into `LearnedScale`: same bits, same files.

    The embedding and a head of its own keep their formats, and what has learned scales already stays as it is.

    Args:
        recipe: formats by kind of module, or a plan.
        lr_multiplier: of the scales that are wrapped here, see `LearnedScale`.
    """
    if isinstance(recipe, PlanFile):
        plan = Plan.from_dict(recipe.to_dict()["plan"])
        modules = {
            name: Placement(held(place.weights, lr_multiplier), place.activations)
            for name, place in plan.modules.items()
        }
        return PlanFile(recipe.name, replace(plan, modules=modules))
    arguments = _arguments(recipe)
    arguments["weights"] = held(recipe.weights, lr_multiplier)
    arguments["overrides"] = {
        pattern: replace(
            other,
            weights=held(other.weights, lr_multiplier)
            if isinstance(other.weights, Format)
            else other.weights,
        )
        for pattern, other in recipe.overrides.items()
    }
    return QuantRecipe(**arguments)


def _arguments(recipe: QuantRecipe) -> dict[str, Any]:
    names = ("name", "embedding", "activations", "kv_cache", "head", "rest", "exclude", "exceptions")
    return {name: getattr(recipe, name) for name in names}


def held(format: Format, lr_multiplier: float = 10.0) -> Format:
    """A format of weights whose scales are parameters; itself, if it has them or has no scales in a row."""
    if isinstance(format, RowMix):
        high, low = held(format.high, lr_multiplier), held(format.low, lr_multiplier)
        assert isinstance(high, Grouped) and isinstance(low, Grouped)
        return RowMix(high, low, format.fraction, format.rows)
    if isinstance(format, Grouped) and not isinstance(format, LearnedScale) and format.group != "tensor":
        return LearnedScale(format, lr_multiplier)
    return format


def check_keeps(format: Format, where: str) -> None:
    """Raise RazorError if a weight's format, bound or not, takes its scales by a rule or shares them by rows."""
    if isinstance(format, RowMix):
        check_keeps(format.high, where)
        check_keeps(format.low, where)
    elif not isinstance(format, LearnedScale) or format.group == "tensor":
        raise RazorError(
            f"A start finds codes and scales, but the format of '{where}', {type(format).__name__} of group "
            f"{getattr(format, 'group', None)}, does not keep scales that it is given: learned scales do, with a "
            "group within a row (quant/format@quant.weights=lsq, or razor.start.holding(recipe))."
        )


def parts_of(format: Format, matrix: Tensor) -> list[Part]:
    """The rows of a matrix [rows, columns] by their formats, which are bound to it and keep scales."""
    both: list[tuple[Format, Tensor]] = [(format, torch.ones_like(matrix[:, 0], dtype=torch.bool))]
    if isinstance(format, RowMix):
        high = format.rows_high(matrix)
        both = [(format.high, high), (format.low, ~high)]
    parts = []
    for own, chosen in both:
        assert isinstance(own, LearnedScale) and own.log_scale is not None
        if chosen.any():
            parts.append(Part(own, chosen.nonzero().squeeze(1)))
    return parts


@torch.no_grad()
def hold(format: Format, parts: list[Part], found: Solved, where: str) -> Tensor:
    """Give a bound format the scales that were found; returns the latent [rows, columns] with just those codes.

    A latent weight is what it was when it was rounded, so that it lies in its code's cell as a trained one would;
    beyond the outer levels, where a learned scale lets no gradient pass, it is the level.
    """
    latent = found.weights.clone()
    for part in parts:
        own, rows = part.format, part.rows
        assert own.log_scale is not None
        own.log_scale.copy_(found.scales[rows].log().unsqueeze(-1))
        if own.zero is not None:
            own.zero.copy_(-found.shifts[rows].unsqueeze(-1))
        scale, shift = (_spread(x[rows], latent.shape[1]) for x in (found.scales, found.shifts))
        place = found.weights[rows] / scale - shift
        outside = (place < own.lowest - own.reach) | (place > own.highest + own.reach)
        latent[rows] = torch.where(outside, found.values[rows], latent[rows])
    latent = torch.where(format.quantize(latent) == found.values, latent, found.values)
    if not torch.equal(format.quantize(latent), found.values):
        raise RuntimeError(
            f"The codes found for '{where}' are not those of the latent weight that was to hold them."
        )
    return latent


def _spread(by_group: Tensor, columns: int) -> Tensor:
    """[rows, groups] -> [rows, columns]."""
    return by_group.repeat_interleave(columns // by_group.shape[1], 1)
