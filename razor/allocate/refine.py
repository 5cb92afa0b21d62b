"""Refinement on true KL: plans that the scores rank second may be better.

Below 3 bits losses do not add up (IMPQ, arXiv 2509.15455): errors of one kind of matrix hurt more, or less, in the
company of others than alone. So the scores are doubted where they may all be wrong together, for a kind of matrix
or a stretch of layers, and then for single groups, those with the largest loss first: their losses are multiplied
by a factor and the knapsack is solved again. What comes out is a swap, or many at once, that keeps the budget
exactly: bits move to the doubted matrices from wherever they are missed least. It stands if true KL on the
calibration text is lower, and the factor with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from razor.allocate.solving import Answer
from razor.allocate.space import Space
from razor.quant import Format
from razor.terminal import progress_bar

FACTORS = (3.0, 1 / 3.0)
STRETCHES = 4
"""Into how many stretches the layers of a model are cut."""

Factors = dict[str, float]


@dataclass
class Refined:
    """What came of it.

    Attributes:
        answer: the best plan found.
        kl: its true KL on the calibration text, nats.
        first: that of the plan it began with.
        tried: (what was doubted, factor, true KL) of each plan that was measured.
    """

    answer: Answer
    kl: float
    first: float
    tried: list[tuple[str, float, float]] = field(default_factory=list)


def refine(
    first: Answer,
    again: Callable[[Mapping[str, float]], Answer],
    kl: Callable[[Mapping[str, Format]], float],
    losses: Mapping[str, float],
    trials: int,
) -> Refined:
    """Try so many plans beside the first.

    Args:
        first: the plan by the scores as they are.
        again: solves with factors by target.
        kl: true KL of formats by target, nats.
        losses: predicted, of each target as it was chosen first.
        trials: plans to measure.
    """
    start = kl(first.formats)
    best, factors = Refined(first, start, start), dict.fromkeys(first.space.targets, 1.0)
    seen = {first.labels}
    with progress_bar("swaps", trials, "plans") as bar:
        for name, members in _doubted(first.space, losses):
            for factor in FACTORS:
                while len(best.tried) < trials:
                    trial = factors | {member: factors[member] * factor for member in members}
                    found = again(trial)
                    if found.labels in seen:
                        break
                    seen.add(found.labels)
                    value = kl(found.formats)
                    best.tried.append((name, factor, value))
                    bar.update()
                    if value >= best.kl:
                        break
                    best.answer, best.kl, factors = found, value, trial
    return best


def _doubted(space: Space, losses: Mapping[str, float]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kinds of matrices, stretches of layers, then single groups by falling loss: name, and targets."""
    kinds: dict[str, list[str]] = {}
    for name in space.targets:
        kinds.setdefault(re.sub(r"\.\d+(?=\.)", "", name).rpartition(".")[2], []).append(name)
    if len(kinds) > 1:
        yield from ((kind, tuple(members)) for kind, members in kinds.items())
    groups = space.groups
    for part in range(STRETCHES if len(groups) > STRETCHES else 0):
        cut = groups[part * len(groups) // STRETCHES : (part + 1) * len(groups) // STRETCHES]
        yield f"{cut[0][0]} to {cut[-1][-1]}", tuple(name for group in cut for name in group)
    for group in sorted(groups, key=lambda group: -sum(losses[name] for name in group)):
        yield group[0], group
