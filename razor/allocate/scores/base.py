"""What every score is: a measurement of a subject, target by target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

from torch import Tensor

from razor.allocate.subject import Subject
from razor.errors import RazorError
from razor.spec import read

MOST_ROWS = 128


class Score(ABC):
    """Measures what each option of each target would lose.

    Args:
        rows: of training text that are looked at, 1..128; 0 for a score that looks at none.

    Attributes:
        name: of its file in conf/score.
        unit: of the numbers, "nats" (of KL, per token) or "squared error".
        by_rows: whether rows are told apart.

    Raises:
        RazorError: more rows than that, or fewer.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    by_rows: ClassVar[bool] = True

    def __init__(self, rows: int = 64) -> None:
        if not 0 < read(int, rows, "score.rows") <= MOST_ROWS:
            raise RazorError(f"score.rows={rows} must be 1 to {MOST_ROWS} rows of calibration text.")
        self.rows = rows

    @property
    def settings(self) -> dict[str, Any]:
        """Its own options, which its numbers depend on; the text is told apart by itself."""
        return {key: value for key, value in vars(self).items() if key != "rows"}

    @abstractmethod
    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of a target, losses [options, rows or 1]) as they are known.

        Args:
            subject: model, targets and text.
            done: names of targets whose losses are known already.
        """
