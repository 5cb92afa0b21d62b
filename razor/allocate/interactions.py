"""How far losses are from adding up: pairs of matrices, and whole plans.

If losses added up, two matrices in low options would lose what each loses alone. What is left, KL of both less the
two single changes, is their interaction; positive if they make each other worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from razor.allocate.meter import Meter
from razor.allocate.space import Space
from razor.quant import Format
from razor.terminal import progress_bar


@dataclass(frozen=True)
class Interaction:
    """Two targets in the formats of a plan; all in nats of true KL.

    Attributes:
        one, other: names.
        alone: sum of what each loses alone.
        together: what both lose.
    """

    one: str
    other: str
    alone: float
    together: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def interactions(
    meter: Meter, space: Space, formats: Mapping[str, Format], pairs: int, seed: int
) -> list[Interaction]:
    """Of some pairs, half of them neighbours in the model's order, half of them anywhere.

    Args:
        meter: of true KL.
        space: whose targets.
        formats: of a plan.
        pairs: how many.
        seed: of their choice.
    """
    chosen = _pairs(list(space.targets), pairs, seed)
    base = meter.kl()
    single: dict[str, float] = {}
    found = []
    with progress_bar("interactions", len(chosen), "pairs") as bar:
        for one, other in chosen:
            for name in (one, other):
                if name not in single:
                    single[name] = meter.kl({name: formats[name]}) - base
            both = meter.kl({name: formats[name] for name in (one, other)}) - base
            found.append(Interaction(one, other, single[one] + single[other], both))
            bar.update()
    return found


def _pairs(names: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    chance = np.random.default_rng(seed)
    if len(names) < 2:
        return []
    found: dict[tuple[str, str], None] = {}
    for turn in range(20 * count):
        if len(found) >= min(count, len(names) * (len(names) - 1) // 2):
            break
        first = int(chance.integers(len(names) - 1))
        second = first + 1 if turn % 2 == 0 else int(chance.integers(first + 1, len(names)))
        found[names[first], names[second]] = None
    return list(found)
