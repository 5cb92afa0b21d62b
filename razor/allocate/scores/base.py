"""What every score is: a measurement of a subject, target by target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import ClassVar

from torch import Tensor

from razor.allocate.subject import Subject


class Score(ABC):
    """Measures what each option of each target would lose.

    Attributes:
        name: in `score=`.
        unit: of the numbers, "nats" (of KL, per token) or "squared error".
        by_rows: whether rows are told apart.
        looks_at_text: whether there has to be calibration text.
        one_by_one: whether targets are measured one after the other, so that few rows have to do.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    by_rows: ClassVar[bool] = True
    looks_at_text: ClassVar[bool] = True
    one_by_one: ClassVar[bool] = False

    @abstractmethod
    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of a target, losses [options, rows or 1]) as they are known.

        Args:
            subject: model, targets and text.
            done: names of targets whose losses are known already.
        """
