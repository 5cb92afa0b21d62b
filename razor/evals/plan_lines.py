"""A plan as lines: one for each parameter of a model, and fewer where layers are alike.

A model's names are full of numbers, and what differs between two names of a large model is almost always one
of them. So lines that agree in everything but a number of their name are folded into one that says which
numbers there are: `model.layers.{0..27}.mlp.up_proj`. Nothing is averaged: what is folded is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from razor.evals.format_names import format_name
from razor.quant import Plan, Size
from razor.quant.size import stored_parameters


@dataclass(frozen=True)
class PlanLine:
    """What becomes of one parameter, or of several alike.

    Attributes:
        name: as the plan calls it; of what the plan does not name, the parameter's full name.
        part: "linear", "embedding" (output head included) or "rest" (norms, biases).
        shape: of each.
        weights: format, in a few words.
        activations: the format of a linear layer's input; "-" where it is left alone.
        size: what all of them take; nothing for a weight that is stored under another name.
        tied_to: that name.
        count: how many are alike.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    weights: str
    activations: str
    size: Size
    tied_to: str | None = None
    count: int = 1


def plan_lines(model: nn.Module, plan: Plan) -> list[PlanLine]:
    """A line for each parameter of `model` (any device, also meta) in its order; tied ones follow their first."""
    lines = []
    for stored in stored_parameters(model, plan):
        weights, size, first = format_name(stored.format), stored.size, None
        for full in (stored.name, *stored.aliases):
            module = full.removesuffix(".weight")
            name = module if module in plan.modules else full
            place = plan.modules.get(name)
            activations = format_name(place.activations if place else None)
            lines.append(PlanLine(name, stored.part, stored.shape, weights, activations, size, first))
            size, first = Size(), lines[-1].tied_to or name
    return lines


def folded(lines: Iterable[PlanLine]) -> list[PlanLine]:
    """Lines that differ only in numbers within their names, as one; in order of their first."""
    lines = list(lines)
    for place in reversed(range(max((len(line.name.split(".")) for line in lines), default=0))):
        alike: dict[object, list[PlanLine]] = {}
        for line in lines:
            parts = line.name.split(".")
            number = place < len(parts) and parts[place].isdecimal()
            key = (*parts[:place], None, *parts[place + 1 :]) if number else line.name
            rest = (line.part, line.shape, line.weights, line.activations, line.tied_to, line.count)
            alike.setdefault((key, rest), []).append(line)
        lines = [_one(same, place) for same in alike.values()]
    return lines


def _one(same: Sequence[PlanLine], place: int) -> PlanLine:
    first = same[0]
    if len(same) == 1:
        return first
    parts = first.name.split(".")
    parts[place] = "{" + _ranges([int(line.name.split(".")[place]) for line in same]) + "}"
    size = sum((line.size for line in same), Size())
    return replace(first, name=".".join(parts), size=size, count=sum(line.count for line in same))


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0..2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{low}..{high}" if high > low else f"{low}" for low, high in runs)
