"""A plan for a budget: classes from scores and sizes, a knapsack, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from razor.allocate.budget import ROOM, Budget
from razor.allocate.choices import Choice, choices
from razor.allocate.knapsack import solve
from razor.allocate.space import Space
from razor.allocate.table import ScoreTable
from razor.errors import RazorError
from razor.quant import Format, ModelSize, Plan


@dataclass(frozen=True)
class Answer:
    """What was chosen.

    Attributes:
        space: in which.
        labels: of the choice of each group, in the order of `space.groups`.
        formats: by target.
        predicted: sum of the scores, in their unit.
        gap: by how much a better plan could be better by the same scores; 0: none is.
    """

    space: Space
    labels: tuple[str, ...]
    formats: Mapping[str, Format]
    predicted: float
    gap: float

    @property
    def plan(self) -> Plan:
        """The plan of the whole model."""
        return self.space.plan(self.formats)

    @property
    def size(self) -> ModelSize:
        """Of the whole model."""
        return self.space.total(self.formats)


def bounds(space: Space, budget: Budget) -> tuple[float, float]:
    """Smallest and largest plan of a space, in the unit of a budget; from shapes alone."""
    ends = [0.0, 0.0]
    for group in space.groups:
        costs = [
            sum(budget.cost(space.size(name, space.targets[name].formats[option])) for name in group)
            for option in space.shared_options(group)
        ]
        ends[0], ends[1] = ends[0] + min(costs), ends[1] + max(costs)
    least, most = (budget.reached(space.settled, space.weights, cost) for cost in ends)
    return least, most


def check_budget(space: Space, budget: Budget, options: Mapping[str, Format]) -> None:
    """Raise RazorError if no plan, or more than every plan, fits a budget; from shapes alone."""
    least, most = bounds(space, budget)
    below, above = min(least, most), max(least, most)
    if not below * (1 - ROOM) <= budget.amount <= above * (1 + ROOM):
        raise RazorError(
            f"budget={budget.amount:g} lies outside of what options=[{', '.join(options)}] can give: the smallest "
            f"plan has {budget.said(least)}, the largest {budget.said(most)}."
        )


def classes_of(
    space: Space,
    table: ScoreTable,
    budget: Budget,
    rows: bool,
    factors: Mapping[str, float] | None = None,
) -> list[list[Choice]]:
    """The choices of each group."""
    return [choices(space, table, budget, group, rows, factors) for group in space.groups]


def answer(
    space: Space,
    table: ScoreTable,
    budget: Budget,
    rows: bool = False,
    factors: Mapping[str, float] | None = None,
) -> Answer:
    """The plan of least summed loss within a budget.

    Args:
        space: what may be decided.
        table: losses.
        budget: how much.
        rows: whether two options may share a matrix.
        factors: see `choices`; `predicted` is without them.

    Raises:
        RazorError: nothing fits the budget.
    """
    classes = classes_of(space, table, budget, rows, factors)
    limit = budget.limit(space.settled, space.weights)
    found = solve([[(choice.cost, choice.loss) for choice in each] for each in classes], limit)
    if found is None:
        raise RazorError(f"No plan has {budget}: {budget.said(bounds(space, budget)[0])} is the smallest.")
    chosen = [each[index] for each, index in zip(classes, found.chosen, strict=True)]
    predicted = found.loss if not factors else _unweighed(space, table, budget, rows, found.chosen)
    formats = {name: format for choice in chosen for name, format in choice.make().items()}
    ordered = {name: formats[name] for name in space.targets}
    return Answer(space, tuple(choice.label for choice in chosen), ordered, predicted, found.gap)


def _unweighed(space: Space, table: ScoreTable, budget: Budget, rows: bool, chosen: tuple[int, ...]) -> float:
    classes = classes_of(space, table, budget, rows)
    return sum(each[index].loss for each, index in zip(classes, chosen, strict=True))
