"""Multiplying with 4-bit codes: PyTorch's own kernel for CPUs.

To answer token by token a model reads every weight for a single row of inputs, so its speed is that of memory.
The kernel `_weight_int4pack_mm_for_cpu` reads four bits a weight and one bf16 scale a group, and sums in fp32: at
one row it is faster than a product in bf16, with a quarter of the memory (docs/exports.md). It holds any code in
-8..7: ternary, two to four bits, and rows that mix them. At many rows a product of decoded weights is faster, and
that is what layers get at a prompt; it is exact. The kernel is not: its scales are rounded to bf16 (the student's
*weights* are), so logits move by about as much as bf16 rounding moves them.

The layout of the codes is the kernel's own business and differs between processors. It is read back when a weight
is put into it, and where that does not give the same codes the weight stays as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.rowmix import RowMix

GROUPS = (256, 128, 64, 32)
"""Columns that may share a scale."""
BLOCKS = (64, 32)
"""Rows that lie together: with AVX-512, with AVX2."""
FEW = 2
"""Rows of inputs up to which the kernel is the faster way (docs/exports.md)."""


class Int4Weight:
    """Codes of a matrix in the kernel's layout.

    Attributes:
        codes: uint8 [rows, columns / 2].
        scales: bf16 [groups, rows, 2], scale and zero.
        kept: what the codes were, without their values.
        block: rows of a block.
    """

    def __init__(self, codes: Tensor, scales: Tensor, kept: Codes, block: int) -> None:
        self.codes, self.scales, self.kept, self.block = codes, scales, kept, block
        self.group = codes.shape[1] * 2 // scales.shape[0]

    @classmethod
    def of(cls, format: Format, codes: Codes) -> Int4Weight | None:
        """Put codes into the layout; None if they do not fit, or this PyTorch or processor has another one."""
        rows, columns = codes.values.shape
        scales = _scales(format, codes)
        block = next((b for b in BLOCKS if rows % b == 0), None)
        if scales is None or block is None or columns % 2:
            return None
        low, high = codes.values.aminmax()
        if low < -8 or high > 7 or not hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"):
            return None
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.values.int() + 8, 1)
        kept = Codes(torch.empty(0, dtype=torch.int8), codes.scales, codes.zeros, codes.high)
        for width in BLOCKS:
            made = cls(packed, scales, kept, width)
            if rows % width == 0 and torch.equal(made.values(), codes.values):
                return made
        return None

    def multiply(self, x: Tensor) -> Tensor:
        """Inputs [n, columns] in bf16 -> [n, rows]."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, self.group, self.scales)

    def values(self) -> Tensor:
        """The codes [rows, columns], int8."""
        blocks = self._blocks()
        both = torch.cat([blocks & 15, blocks >> 4], -1)  # [blocks, columns, rows of a block]
        return both.transpose(1, 2).reshape(self.codes.shape[0], -1).view(torch.int8) - 8

    def rows(self, index: Tensor) -> Codes:
        """The codes of some rows [n, columns], of a format that keeps scales by rows."""
        half = self.block // 2
        place = index % self.block
        found = self._blocks()[index // self.block, :, place % half]
        values = torch.where((place < half)[:, None], found & 15, found >> 4).view(torch.int8) - 8
        assert self.kept.scales is not None
        return Codes(values, self.kept.scales.index_select(0, index))

    def _blocks(self) -> Tensor:
        return self.codes.view(-1, self.codes.shape[1] * 2, self.block // 2)


def _scales(format: Format, codes: Codes) -> Tensor | None:
    """bf16 [groups, rows, 2] of what a format means by its codes; None if the kernel cannot say it."""
    parts = (format.high, format.low) if isinstance(format, RowMix) else (format,)
    shifts = {part.shift if isinstance(part, Grouped) and not part.zero_width else None for part in parts}
    shift = shifts.pop()
    if codes.scales is None or shifts or shift is None:
        return None
    rows, columns = codes.values.shape
    scales = codes.scales.float().expand(rows, -1)
    width = columns // scales.shape[1]
    group = next((g for g in GROUPS if width % g == 0), None)
    if group is None:
        return None
    both = torch.stack([scales, scales * shift], -1).repeat_interleave(width // group, 1)
    return both.transpose(0, 1).contiguous().to(torch.bfloat16)
