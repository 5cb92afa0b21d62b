"""Squared error of the weights: which matrix moves most."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from razor.allocate.scores.base import Score
from razor.allocate.subject import Subject, lost


class WeightError(Score):
    """loss = sum over a row of (Wq - W)^2.

    As if every input of every layer had the same size and every output the same use. It costs a rounding of each
    matrix in each option, and nothing else.
    """

    name = "weight_error"
    unit = "squared error"

    def __init__(self) -> None:
        self.rows = 0

    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        for name, target in subject.waiting(done):
            yield name, lost(subject.weight(target), target)
