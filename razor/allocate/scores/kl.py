"""The KL itself: what predictions lose when one matrix is switched."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from razor.allocate.scores.base import Score
from razor.allocate.subject import Subject


class TrueKL(Score):
    """loss = KL(teacher || model with this matrix in that option) - KL(teacher || model), nats per token.

    No approximation for a single matrix, at the price of a pass for each option of each; passes begin at the
    matrix's own layer. What it cannot see is how losses of several matrices add up. A change may be negative.
    """

    name = "kl"
    unit = "nats"
    by_rows = False

    def __init__(self, rows: int = 8) -> None:
        super().__init__(rows)

    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        meter = subject.meter(self.rows)
        base = meter.kl()
        for name, target in subject.waiting(done, "kl"):
            found = [meter.switched(target, option) - base for option in target.formats]
            yield name, torch.tensor(found).unsqueeze(1)
