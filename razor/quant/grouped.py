"""Symmetric codes with one scale for each group of neighbours along the input dimension.

`code = clamp(round(x / s), -limit, limit)` and `x ~ code * s`, with one 16-bit scale `s` for each `group`
consecutive weights of a row and no zero point (arXiv 2605.04062, section 3). What differs between formats
is how the scale is found, how far the codes reach and how they are packed.

The scale is rounded to fp16 *before* it is used, in training as well as in storage; nothing can move when
a trained model is written down. A group of zeros would have scale zero: scales are held within fp16's
positive range, so its codes are simply zero.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.quant.format import Format, Shape

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""Smallest positive and largest finite fp16 number."""


class Grouped(Format):
    """Base of the symmetric group-wise formats.

    Args:
        group: neighbours along the last dimension that share a scale; must divide its length.
    """

    limit: int

    def __init__(self, group: int) -> None:
        super().__init__()
        if not isinstance(group, int) or group < 1:
            raise RazorError(
                f"quant group '{group}' must be a positive whole number (see conf/model/*.yaml)."
            )
        self.group = group

    @abstractmethod
    def raw_scale(self, grouped: Tensor) -> Tensor:
        """Scale of each group before rounding: [..., groups, group] fp32 -> [..., groups, 1]."""

    @abstractmethod
    def pack_values(self, values: Tensor) -> Tensor:
        """int8 codes [rows, columns] -> uint8 [rows, bytes per row]."""

    @abstractmethod
    def unpack_values(self, packed: Tensor, columns: int) -> Tensor:
        """Inverse of `pack_values`."""

    @abstractmethod
    def bytes_per_row(self, columns: int) -> int:
        """Bytes that a row of codes takes, padding included."""

    def check(self, shape: Shape, where: str) -> None:
        """Raise RazorError, naming the groups that would divide, if the group does not divide the row."""
        columns = shape[-1]
        if columns % self.group:
            fit = [str(g) for g in range(8, columns + 1) if columns % g == 0 and g <= 1024]
            raise RazorError(
                f"Group {self.group} does not divide the {columns} inputs of '{where}'; "
                f"groups that would: {', '.join(fit) or columns} (set model.group=...)."
            )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 groups [..., groups, group] and their fp16-rounded scales [..., groups, 1] as fp32."""
        self.check(x.shape, "a tensor")
        grouped = x.unflatten(-1, (-1, self.group)).float()
        scale = self.raw_scale(grouped).clamp(SMALLEST, LARGEST).half().float()
        return grouped, scale

    def encode(self, x: Tensor) -> Codes:  # noqa: D102 - see Format
        grouped, scale = self._split(x.detach())
        codes = torch.div(grouped, scale).round_().clamp_(-self.limit, self.limit)
        return Codes(codes.to(torch.int8).flatten(-2), scale.squeeze(-1).half())

    def decode(self, codes: Codes) -> Tensor:  # noqa: D102
        assert codes.scales is not None
        grouped = codes.values.unflatten(-1, (-1, self.group)).float()
        return grouped.mul_(codes.scales.float().unsqueeze(-1)).flatten(-2)

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`decode(encode(x))` without the detour through int8 (the law tests hold them equal)."""
        grouped, scale = self._split(x.detach())
        codes = torch.div(grouped, scale).round_().clamp_(-self.limit, self.limit)
        return codes.mul_(scale).flatten(-2).to(dtype or x.dtype)

    def scale_bits(self, shape: Shape) -> float:  # noqa: D102
        return 16.0 * torch.Size(shape).numel() / self.group

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """`codes` [rows, bytes per row] uint8 and `scales` [rows, columns / group] fp16."""
        assert codes.scales is not None
        return {"codes": self.pack_values(codes.values), "scales": codes.scales.contiguous()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:  # noqa: D102
        return Codes(self.unpack_values(tensors["codes"], shape[-1]), tensors["scales"])

    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: D102
        rows = tuple(shape[:-1])
        return {
            "codes": ((*rows, self.bytes_per_row(shape[-1])), torch.uint8),
            "scales": ((*rows, shape[-1] // self.group), torch.float16),
        }
