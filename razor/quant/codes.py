"""What a format makes of a tensor, before anybody packs it.

`Codes` is the one hand-over between the numerics and everything that stores weights: the packed checkpoint
and every exporter start from here, never from de-quantized numbers, so that no value is rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Integer codes and their scales.

    Attributes:
        values: [rows, columns]; int8 codes, or the 16-bit numbers themselves for a format without codes.
        scales: [rows, columns / group] fp16, or None for a format without scales.
    """

    values: Tensor
    scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that was encoded."""
        return tuple(self.values.shape)
