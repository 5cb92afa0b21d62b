"""Codes with one scale for each group of neighbours along the input dimension.

`code = clamp(round(x / s - shift), lowest, highest)` and `x ~ (code + shift) * s`, with one 16-bit scale `s`
for each `group` consecutive weights of a row (arXiv 2605.04062, section 3). `shift` is 0 for codes that have
a zero among them, 1/2 for levels that lie on both sides of it, and minus the zero point for an asymmetric
format. What differs between formats is how the scale is found, how far the codes reach and how they are packed.

The scale is rounded to its 16-bit type *before* it is used, in training as well as in storage; nothing can
move when a trained model is written down. A group of zeros would have scale zero: scales are held within the
positive range of their type, so its codes are simply the ones nearest to zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.quant.codewords import Codeword
from razor.quant.format import Format, Shape
from razor.quant.packing import bytes_of_bits, pack_bits, unpack_bits

Group = int | Literal["row", "tensor"]
"""How many neighbours share a scale: a number, a row, everything."""

ScaleDtype = Literal["float16", "bfloat16"]

SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SCALE_RANGE = {"float16": (2.0**-24, 65504.0), "bfloat16": (2.0**-126, 2.0**120)}
"""Held scales: fp16's smallest positive and largest number; bf16's short of where fp32 codes overflow."""


class Grouped(Format):
    """Base of the group-wise formats.

    Args:
        group: neighbours along the last dimension that share a scale (must divide its length), or "row" for
            one scale a row, or "tensor" for a single one.
        scale_dtype: 16-bit type that scales are rounded to and stored in, "float16" or "bfloat16".

    Raises:
        RazorError: an argument outside its choices.
    """

    codeword: Codeword
    lowest: int
    highest: int
    shift: float = 0.0
    zero_width: int = 0  # bits of a stored zero point; 0: there is none
    reach: float = 0.0  # how far beyond the outer codes a learned scale lets gradients pass

    def __init__(self, group: Group, scale_dtype: ScaleDtype = "float16") -> None:
        super().__init__()
        whole = isinstance(group, int) and not isinstance(group, bool) and group >= 1
        if not whole and group not in ("row", "tensor"):
            raise RazorError(
                f"quant group '{group}' must be a positive whole number, 'row' or 'tensor' (see conf/model/*.yaml)."
            )
        if scale_dtype not in SCALE_DTYPES:
            raise RazorError(
                f"Scales cannot be stored as '{scale_dtype}'. Choices: {', '.join(SCALE_DTYPES)}."
            )
        self.group, self.scale_dtype = group, scale_dtype

    @abstractmethod
    def raw_scale(self, grouped: Tensor) -> Tensor:
        """Scale of each group before rounding: [..., groups, group] fp32 -> [..., groups, 1]."""

    @property
    def per_token(self) -> bool:  # noqa: D102 - see Format
        return self.group != "tensor"

    def fit(self, grouped: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale before rounding and zero point (an asymmetric format's) of each group, [..., groups, 1]."""
        return self.raw_scale(grouped), None

    def check(self, shape: Shape, where: str) -> None:
        """Raise RazorError, naming the groups that would divide, if the group does not divide the row."""
        columns = shape[-1]
        if isinstance(self.group, int) and columns % self.group:
            fit = [str(g) for g in range(8, columns + 1) if columns % g == 0 and g <= 1024]
            raise RazorError(
                f"Group {self.group} does not divide the {columns} inputs of '{where}'; "
                f"groups that would: {', '.join([*fit, 'row'])} (set model.group=...)."
            )

    def blocks(self, x: Tensor) -> Tensor:
        """`x` [..., columns] as its groups, [..., groups, group]; [1, 1, all] if they share one scale."""
        if self.group == "row":
            return x.unsqueeze(-2)
        if self.group == "tensor":
            return x.reshape(1, 1, -1)
        self.check(x.shape, "a tensor")
        return x.unflatten(-1, (-1, self.group))

    def rounded_scale(self, scale: Tensor) -> Tensor:
        """A scale as it is stored, in fp32."""
        return scale.clamp(*SCALE_RANGE[self.scale_dtype]).to(SCALE_DTYPES[self.scale_dtype]).float()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """fp32 groups [..., groups, group], their rounded scales and shifts [..., groups, 1]."""
        grouped = self.blocks(x.detach()).float()
        scale, zero = self.fit(grouped)
        return grouped, self.rounded_scale(scale), self.shift if zero is None else -zero

    def position(self, grouped: Tensor, scale: Tensor, shift: Tensor | float) -> Tensor:
        """Where numbers lie among the codes, before rounding; a new tensor."""
        place = torch.div(grouped, scale)
        return place if isinstance(shift, float) and shift == 0.0 else place.sub_(shift)

    def round_(self, place: Tensor) -> Tensor:
        """The nearest codes, in place."""
        return place.round_().clamp_(self.lowest, self.highest)

    def value_(self, codes: Tensor, scale: Tensor, shift: Tensor | float) -> Tensor:
        """What fp32 codes stand for, in place."""
        if not isinstance(shift, float) or shift != 0.0:
            codes.add_(shift)
        return codes.mul_(scale)

    def encode(self, x: Tensor) -> Codes:  # noqa: D102 - see Format
        grouped, scale, shift = self.split(x)
        codes = self.round_(self.position(grouped, scale, shift)).to(torch.int8).reshape(x.shape)
        zeros = shift.neg().to(torch.int8).squeeze(-1) if isinstance(shift, Tensor) else None
        return Codes(codes, scale.squeeze(-1).to(SCALE_DTYPES[self.scale_dtype]), zeros)

    def decode(self, codes: Codes) -> Tensor:  # noqa: D102
        assert codes.scales is not None
        shift: Tensor | float = self.shift
        if self.zero_width:  # in a mixed matrix the rows of other formats have zeros beside them, too
            assert codes.zeros is not None
            shift = -codes.zeros.float().unsqueeze(-1)
        grouped = self.blocks(codes.values).float()
        return self.value_(grouped, codes.scales.float().unsqueeze(-1), shift).reshape(codes.shape)

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`decode(encode(x))` without the detour through int8 (the law tests hold them equal)."""
        return self._computed(x, dtype, self.round_)

    def soft_codes(self, place: Tensor) -> Tensor:
        """Codes as training sees them: rounded, unless a format softens that for a while."""
        return self.round_(place)

    def fake(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:  # noqa: D102
        return self._computed(x, dtype, self.soft_codes)

    def _computed(self, x: Tensor, dtype: torch.dtype | None, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        grouped, scale, shift = self.split(x)
        codes = rounding(self.position(grouped, scale, shift))
        return self.value_(codes, scale, shift).reshape(x.shape).to(dtype or x.dtype)

    def scale_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape."""
        if self.group == "tensor":
            return (1, 1)
        return (*shape[:-1], 1 if self.group == "row" else shape[-1] // int(self.group))

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return self.codeword.bits * math.prod(shape)

    def side_bits(self, shape: Shape) -> float:
        """Bits of scales and zero points."""
        return float((16 + self.zero_width) * math.prod(self.scale_shape(shape)))

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """`codes` uint8 [rows, bytes per row], `scales` in their 16-bit type and, if there are any, `zeros`."""
        assert codes.scales is not None
        packed = {"codes": self.codeword.pack(codes.values), "scales": codes.scales.contiguous()}
        if self.zero_width:
            assert codes.zeros is not None
            packed["zeros"] = pack_bits(codes.zeros.to(torch.uint8), self.zero_width)
        return packed

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:  # noqa: D102
        zeros = None
        if self.zero_width:
            count = self.scale_shape(shape)[-1]
            zeros = unpack_bits(tensors["zeros"], self.zero_width, count).to(torch.int8)
        return Codes(self.codeword.unpack(tensors["codes"], shape[-1]), tensors["scales"], zeros)

    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: D102
        rows, scales = tuple(shape[:-1]), self.scale_shape(shape)
        layout = {
            "codes": ((*rows, self.codeword.bytes_per_row(shape[-1])), torch.uint8),
            "scales": (scales, SCALE_DTYPES[self.scale_dtype]),
        }
        if self.zero_width:
            layout["zeros"] = ((*scales[:-1], bytes_of_bits(scales[-1], self.zero_width)), torch.uint8)
        return layout

    @property
    def label(self) -> str:  # noqa: D102
        return f"{self.codeword.bits:g}"
