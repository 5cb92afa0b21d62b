"""Symmetric integers: 2^(b-1) - 1 levels on either side of zero.

Scale = largest magnitude of the group / limit, so nothing is clipped: int4 has codes -7..7, int8 -127..127
(arXiv 2605.04062). The same format serves weights, and, recomputed for each token, activations and the
KV cache ("dynamic" quantization).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.format import Shape
from razor.quant.grouped import Grouped
from razor.quant.packing import bytes_of_bits, pack_bits, unpack_bits


class Integer(Grouped):
    """`width`-bit symmetric integers; scale = max(abs(x)) / (2^(width-1) - 1) of the group.

    Gradient: straight through, everywhere. Stored as unsigned codes, offset by 2^(width-1).
    """

    def __init__(self, width: int, group: int) -> None:
        super().__init__(group)
        if width not in range(2, 9):
            raise RazorError(f"Integer format of width '{width}': choose a whole number of bits from 2 to 8.")
        self.width = width
        self.limit = 2 ** (width - 1) - 1

    def raw_scale(self, grouped: Tensor) -> Tensor:  # noqa: D102 - see Grouped
        return grouped.abs().amax(-1, keepdim=True).div_(self.limit)

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return float(self.width * math.prod(shape))

    def pack_values(self, values: Tensor) -> Tensor:  # noqa: D102
        unsigned = (values.to(torch.int16) + 2 ** (self.width - 1)).to(torch.uint8)
        return pack_bits(unsigned, self.width)

    def unpack_values(self, packed: Tensor, columns: int) -> Tensor:  # noqa: D102
        unsigned = unpack_bits(packed, self.width, columns)
        return (unsigned.to(torch.int16) - 2 ** (self.width - 1)).to(torch.int8)

    def bytes_per_row(self, columns: int) -> int:  # noqa: D102
        return bytes_of_bits(columns, self.width)

    @property
    def label(self) -> str:  # noqa: D102
        return str(self.width)
