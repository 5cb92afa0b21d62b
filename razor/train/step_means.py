"""What an optimizer step said, of everything its micro-batches said.

A step is one large batch that was cut for want of memory, over time (accumulation) and over processes. Its loss
is the mean over documents, so each micro-batch counts by its share of them; whoever logs one micro-batch logs
noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from razor import processes


class StepMeans:
    """Collects the numbers of micro-batches until the step is made."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[float, Mapping[str, float], Mapping[str, float]]] = []

    def add(self, share: float, counts: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Numbers of one micro-batch.

        Args:
            share: see `Batch.share`.
            counts: are summed.
            values: are averaged; those named `.../layer_...` are choices, and the last one stands.
        """
        self._micro_batches.append((share, counts, values))

    def take(self) -> dict[str, float]:
        """Of all micro-batches since the last call, in all processes, which must have the same names."""
        taken, self._micro_batches = self._micro_batches, []
        _, counts, values = taken[-1]
        shares = [share for share, _, _ in taken]
        sums = [sum(counted[name] for _, counted, _ in taken) for name in counts]
        weighted = [sum(share * found[name] for share, _, found in taken) for name in values]
        weight, *numbers = processes.totals([sum(shares), *sums, *weighted])
        summed = dict(zip(counts, numbers, strict=False))
        means = {name: number / weight for name, number in zip(values, numbers[len(sums) :], strict=True)}
        choices = {name: value for name, value in values.items() if "/layer_" in name}
        return summed | means | choices
