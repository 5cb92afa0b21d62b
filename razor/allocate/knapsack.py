"""The knapsack behind an allocation: one choice from every class, the least loss within a limit of cost.

Scores that add up make mixed precision a multiple-choice knapsack problem. It is solved exactly, for costs of any
kind (1.58 bits, a map of rows), by dynamic programming over lists of partial choices (Nemhauser and Ullmann, 1969),
made small by a bound. With the price `p` of a unit of cost, taken from the linear relaxation, every solution obeys

    loss = bound + sum of slacks + p * (limit - cost),    slack = loss + p * cost - (the least of that in its class)

and all three terms are at least 0. A greedy solution is nearly as good as the bound; whatever has more slack than
lies between the two cannot be part of a better one and is dropped. For hundreds of matrices hardly anything is
left to be searched (the core of Pisinger, 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from razor.allocate.budget import ROOM

Options = Sequence[tuple[float, float]]
"""(cost, loss) of each choice of a class."""

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]

MOST_STATES = 300_000

SAME = 1e-13
"""Part of all losses by which two are still the same: matrices that are alike make thousands of such sums."""


@dataclass(frozen=True)
class Solution:
    """A choice for every class.

    Attributes:
        chosen: index of the choice of each class.
        cost: their sum.
        loss: their sum.
        gap: by how much the least possible loss may be smaller; 0 unless the search had to be cut short.
    """

    chosen: tuple[int, ...]
    cost: float
    loss: float
    gap: float = 0.0


def solve(classes: Sequence[Options], limit: float) -> Solution | None:
    """The choices of least loss whose costs add up to at most `limit`; None if there are none.

    Args:
        classes: at least one choice each.
        limit: of the summed cost; passed by no more than a part of 1e-9, which is the error of sums.
    """
    room = limit + ROOM * max(1.0, abs(limit))
    pairs = [np.array(options, dtype=np.float64).reshape(-1, 2) for options in classes]
    if sum(pair[:, 0].min() for pair in pairs) > room:
        return None
    kept = [_undominated(pair) for pair in pairs]
    price, greedy = _greedy([pair[index] for pair, index in zip(pairs, kept, strict=True)], room)
    first = [int(index[choice]) for index, choice in zip(kept, greedy, strict=True)]
    return _searched(pairs, kept, price, room, first)


def _undominated(pair: Numbers) -> Places:
    """Indices of the choices [n, 2] that no other one equals or betters in both cost and loss, cheapest first."""
    order = np.lexsort((pair[:, 1], pair[:, 0]))
    losses = pair[order, 1]
    best = np.concatenate([[np.inf], np.minimum.accumulate(losses)[:-1]])
    return order[losses < best]


def _hull(pair: Numbers) -> list[int]:
    """Choices on the lower convex hull of (cost, loss), from undominated ones, cheapest first."""
    hull: list[int] = []
    for i in range(len(pair)):
        while len(hull) > 1:
            (c0, l0), (c1, l1), (c2, l2) = pair[hull[-2]], pair[hull[-1]], pair[i]
            if (l0 - l1) * (c2 - c1) > (l1 - l2) * (c1 - c0):
                break
            hull.pop()
        hull.append(i)
    return hull


def _greedy(pairs: Sequence[Numbers], room: float) -> tuple[float, list[int]]:
    """Price of a unit of cost in the linear relaxation, and choices made by falling gain per cost."""
    steps = []
    for which, pair in enumerate(pairs):
        hull = _hull(pair)
        for before, after in pairwise(hull):
            cost, gain = pair[after, 0] - pair[before, 0], pair[before, 1] - pair[after, 1]
            steps.append((-gain / cost, which, before, after, cost))
    chosen, left = [0] * len(pairs), room - sum(pair[0, 0] for pair in pairs)
    price, full = 0.0, False
    for rate, which, before, after, cost in sorted(steps):
        if cost <= left and chosen[which] == before:
            chosen[which], left = after, left - cost
        elif not full:
            price, full = -rate, True
    return price, chosen


def _searched(
    pairs: Sequence[Numbers],
    kept: Sequence[Places],
    price: float,
    room: float,
    first: Sequence[int],
) -> Solution:
    """Dynamic programming over the classes, pruned by the distance between the first solution and the bound."""
    cost, loss = (sum(float(pair[i, k]) for pair, i in zip(pairs, first, strict=True)) for k in (0, 1))
    slacks = [pair[index] @ np.array([price, 1.0]) for pair, index in zip(pairs, kept, strict=True)]
    bound = sum(float(slack.min()) for slack in slacks) - price * room
    open_to = (loss - bound) * (1 + 1e-9) + 1e-12 * abs(loss)
    search = _Search(room, price, open_to, SAME * sum(float(np.abs(pair).max()) for pair in slacks))
    classes = []
    for which, (pair, index, slack) in enumerate(zip(pairs, kept, slacks, strict=True)):
        near = slack - slack.min() <= open_to
        classes.append((which, index[near], pair[index[near], 0], (slack - slack.min())[near]))
    classes.sort(key=lambda each: -np.sort(each[3])[1] if len(each[3]) > 1 else -np.inf)
    found = search.run([(costs, slack) for _, _, costs, slack in classes])
    if found is None:
        return Solution(tuple(first), cost, loss)
    chosen = list(first)
    for (which, index, _, _), choice in zip(classes, found, strict=True):
        chosen[which] = int(index[choice])
    own, other = (sum(float(pair[i, k]) for pair, i in zip(pairs, chosen, strict=True)) for k in (0, 1))
    if other >= loss:
        own, other, chosen = cost, loss, list(first)
    gap = max(0.0, min(other, loss) - bound) if search.cut else 0.0
    return Solution(tuple(chosen), own, other, gap)


class _Search:
    """Lists of partial choices: cost, slack, and where each came from."""

    def __init__(self, room: float, price: float, open_to: float, same: float) -> None:
        self.room, self.price, self.open_to, self.same = room, price, open_to, same
        self.cut = False

    def run(self, classes: Sequence[tuple[Numbers, Numbers]]) -> list[int] | None:
        """Choice of each class, of the best solution found; None if none is within reach of the bound."""
        least = [sum(float(c.min()) for c, _ in classes[i + 1 :]) for i in range(len(classes))]
        most = [sum(float(c.max()) for c, _ in classes[i + 1 :]) for i in range(len(classes))]
        cost, slack = np.zeros(1), np.zeros(1)
        trail: list[tuple[Places, Places]] = []
        for (costs, slacks), low, high in zip(classes, least, most, strict=True):
            parents, choices = (g.ravel() for g in np.indices((len(cost), len(costs))))
            cost, slack = cost[parents] + costs[choices], slack[parents] + slacks[choices]
            unused = self.price * np.maximum(0.0, self.room - cost - high)
            alive = np.flatnonzero((slack + unused <= self.open_to) & (cost + low <= self.room))
            alive = self._best(alive, cost, slack)
            cost, slack = cost[alive], slack[alive]
            trail.append((parents[alive], choices[alive]))
        if not len(cost):
            return None
        state, found = int(np.argmin(slack - self.price * cost)), []
        for parents, choices in reversed(trail):
            found.append(int(choices[state]))
            state = int(parents[state])
        return found[::-1]

    def _best(self, alive: Places, cost: Numbers, slack: Numbers) -> Places:
        """Those that no other one betters in cost and loss (which is slack less price times cost)."""
        loss = slack[alive] - self.price * cost[alive]
        order = alive[np.lexsort((loss, cost[alive]))]
        loss = slack[order] - self.price * cost[order]
        best = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]]) if len(loss) else loss
        order = order[loss < best - self.same]
        if len(order) > MOST_STATES:
            self.cut = True
            order = np.sort(order[np.argsort(slack[order], kind="stable")[:MOST_STATES]])
        return order
