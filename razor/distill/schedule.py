"""A loss's weight over the run.

A schedule is a function of the optimizer step and of the run's length, so a resumed run needs no state for it.
A weight of 0 costs nothing: the loss is not computed, and what only it needed is not recorded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from razor.errors import RazorError


class Schedule(ABC):
    """A weight that changes."""

    @abstractmethod
    def at(self, step: int, steps: int) -> float:
        """Weight at optimizer step `step`, from 0, of `steps`."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest weight it takes."""


class _Ramp(Schedule):
    def __init__(self, start: float, end: float, over: float = 1.0) -> None:
        for name, weight in (("start", start), ("end", end)):
            if not (weight >= 0 and math.isfinite(weight)):
                raise RazorError(f"{name}={weight} must be 0 or more.")
        if not 0 < over <= 1:
            raise RazorError(f"over={over} is a part of the run: above 0, at most 1.")
        self.start, self.end, self.over = start, end, over

    @property
    def largest(self) -> float:
        return max(self.start, self.end)

    def _progress(self, step: int, steps: int) -> float:
        """0 at the first step, 1 at the last one of the ramp and after it."""
        return min(1.0, step / max(1.0, self.over * steps - 1))


class Linear(_Ramp):
    """From `start` at the first step to `end` in a straight line, over a part of the run; then constant.

    Args:
        start, end: weights, 0 or more.
        over: part of the run that it takes, above 0 and at most 1.
    """

    def at(self, step: int, steps: int) -> float:  # noqa: D102
        return self.start + (self.end - self.start) * self._progress(step, steps)


class Cosine(_Ramp):
    """From `start` to `end` along half a cosine, over a part of the run; then constant.

    Args:
        start, end: weights, 0 or more.
        over: part of the run that it takes, above 0 and at most 1.
    """

    def at(self, step: int, steps: int) -> float:  # noqa: D102
        along = 0.5 - 0.5 * math.cos(math.pi * self._progress(step, steps))
        return self.start + (self.end - self.start) * along


class OffAfter(Schedule):
    """`weight` for the first `step` optimizer steps, 0 after them.

    Args:
        weight: 0 or more.
        step: 1 or more.
    """

    def __init__(self, weight: float, step: int) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise RazorError(f"weight={weight} must be 0 or more.")
        if step < 1:
            raise RazorError(f"step={step} must be at least 1.")
        self.weight, self.step = weight, step

    @property
    def largest(self) -> float:  # noqa: D102
        return self.weight

    def at(self, step: int, steps: int) -> float:  # noqa: D102
        return self.weight if step < self.step else 0.0
