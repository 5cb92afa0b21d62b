"""From scores and sizes to the classes of a knapsack: what a group may be, what it costs, what it loses.

With whole matrices a choice is an option. With rows it may also be two options in one matrix (`RowMix`): of the two
the rows that gain most are in the higher one, which is the best use of that many rows for scores that add up; so
only how many is left to decide, in sixteenths of the rows. The map of rows, a bit each, is counted. Pairs whose
groups of scales differ cannot share a matrix and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations

import torch

from razor.allocate.budget import Budget
from razor.allocate.space import Space, Target
from razor.allocate.table import ScoreTable
from razor.quant import Format, Grouped, RowMix, Size
from razor.quant.packing import bytes_of_bits
from razor.quant.rowmix import map_of

STEPS = 16
"""Into how many parts the rows of a matrix are cut."""


@dataclass(frozen=True)
class Choice:
    """What a group may be.

    Attributes:
        label: for people.
        cost: in the unit of the budget (bits, or bytes).
        loss: in the unit of the score.
        make: gives the format of each target; a map of rows is written only for what is chosen.
    """

    label: str
    cost: float
    loss: float
    make: Callable[[], dict[str, Format]]


def choices(
    space: Space,
    table: ScoreTable,
    budget: Budget,
    group: tuple[str, ...],
    rows: bool,
    factors: Mapping[str, float] | None = None,
) -> list[Choice]:
    """All choices of a group.

    Args:
        space: that it is of.
        table: of its targets.
        budget: whose unit costs are in.
        group: names of targets.
        rows: whether two options may share a matrix.
        factors: by which a target's losses are multiplied, where they are known to mislead.
    """
    targets = [space.targets[name] for name in group]
    weigh = {name: (factors or {}).get(name, 1.0) for name in group}
    options = space.shared_options(group)
    found = [_whole(space, table, budget, targets, option, weigh) for option in options]
    if rows:
        for low, high in permutations(options, 2):
            if _mixable(targets, low, high) and _is_higher(space, targets, low, high):
                found += _mixed(space, table, budget, targets, (low, high), weigh)
    return found


def _whole(
    space: Space,
    table: ScoreTable,
    budget: Budget,
    targets: list[Target],
    option: str,
    weigh: Mapping[str, float],
) -> Choice:
    made = {target.name: target.formats[option] for target in targets}
    cost = sum(budget.cost(space.size(name, format)) for name, format in made.items())
    loss = sum(weigh[target.name] * table.loss(target, option) for target in targets)
    return Choice(option, cost, loss, lambda: dict(made))


def _mixable(targets: list[Target], low: str, high: str) -> bool:
    for target in targets:
        one, other = target.formats[low], target.formats[high]
        if not isinstance(one, Grouped) or not isinstance(other, Grouped) or one.group == "tensor":
            return False
        if (one.group, one.scale_dtype) != (other.group, other.scale_dtype):
            return False
    return True


def _is_higher(space: Space, targets: list[Target], low: str, high: str) -> bool:
    bits = [
        sum(space.size(target.name, target.formats[option]).bits for target in targets)
        for option in (low, high)
    ]
    return bits[1] > bits[0]


def _mixed(
    space: Space,
    table: ScoreTable,
    budget: Budget,
    targets: list[Target],
    pair: tuple[str, str],
    weigh: Mapping[str, float],
) -> list[Choice]:
    """Every number of rows of two options, the gaining ones first."""
    low, high = pair
    orders, sums = {}, {}
    for target in targets:
        lost, kept = (table.rows(target, option).double() for option in pair)
        gains, order = (lost - kept).sort(descending=True, stable=True)
        orders[target.name] = order
        sums[target.name] = lost.sum() - torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    found = []
    for step in range(1, STEPS):
        many = {t.name: math.ceil(t.site.shape[0] * step / STEPS) for t in targets}
        if any(many[t.name] >= t.site.shape[0] for t in targets):
            continue
        cost = sum(budget.cost(_mixed_size(t, pair, many[t.name])) for t in targets)
        loss = sum(weigh[name] * float(sums[name][count]) for name, count in many.items())

        def make(many: dict[str, int] = many) -> dict[str, Format]:
            return {t.name: _mapped(t, pair, orders[t.name][: many[t.name]]) for t in targets}

        found.append(Choice(f"{step}/{STEPS} {high} + {STEPS - step}/{STEPS} {low}", cost, loss, make))
    return found


def _mixed_size(target: Target, pair: tuple[str, str], many: int) -> Size:
    """What `RowMix` takes with a map of rows; making thousands of them to ask would take a minute."""
    rows, columns = target.site.shape
    total = Size(0, 0.0, rows, bytes_of_bits(rows, 1))
    for option, count in zip(pair, (rows - many, many), strict=True):
        format, shape = target.formats[option], (count, columns)
        sizes = format.code_bits(shape), format.side_bits(shape), format.packed_bytes(shape)
        total += Size(count * columns, *sizes)
    return total


def _mapped(target: Target, pair: tuple[str, str], rows: torch.Tensor) -> RowMix:
    chosen = torch.zeros(target.site.shape[0], dtype=torch.bool)
    chosen[rows] = True
    low, high = (target.formats[option] for option in pair)
    assert isinstance(low, Grouped) and isinstance(high, Grouped)
    return RowMix(high, low, len(rows) / len(chosen), map_of(chosen))
