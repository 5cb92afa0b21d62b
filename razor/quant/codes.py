"""What a format makes of a tensor, before anybody packs it.

`Codes` is the one hand-over between the numerics and everything that stores weights: the packed checkpoint
and every exporter start from here, never from de-quantized numbers, so that no value is rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Integer codes and what is stored beside them.

    Attributes:
        values: [rows, columns]; int8 codes, or the 16-bit numbers themselves for a format without codes.
        scales: 16-bit floats, [rows, groups]; [1, 1] for a scale that the whole tensor shares; None for a
            format without scales.
        zeros: int8 codes that stand for zero, shaped like `scales`; None for a symmetric format.
        high: [rows] bool, the rows that are in the higher of two formats; None unless that is stored.
    """

    values: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    high: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that was encoded."""
        return tuple(self.values.shape)

    def cpu(self) -> Codes:
        """The same codes on the CPU."""
        parts = (self.scales, self.zeros, self.high)
        return Codes(self.values.cpu(), *(None if part is None else part.cpu() for part in parts))

    def rows(self, index: Tensor) -> Codes:
        """The codes of some rows, by index (of a format whose scales are not shared between rows)."""
        return Codes(
            self.values.index_select(0, index),  # which is many times as fast as values[index] on a CPU
            None if self.scales is None else self.scales.index_select(0, index),
            None if self.zeros is None else self.zeros.index_select(0, index),
        )
