"""Sixteen bits: what is not compressed is still rounded.

Norms, biases and, with `quant=w16`, every weight are trained in fp32 and stored in 16 bits. They too are
rounded in the forward pass, so that the stored model is the trained model to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.quant.format import Format, Shape

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Float16(Format):
    """A 16-bit floating-point type, `bfloat16` or `float16`; no scales.

    Gradient: straight through.
    """

    def __init__(self, dtype: str = "bfloat16") -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise RazorError(f"Unknown 16-bit type '{dtype}'. Choices: {', '.join(DTYPES)}.")
        self.dtype = dtype

    def encode(self, x: Tensor) -> Codes:  # noqa: D102 - see Format
        return Codes(x.detach().to(DTYPES[self.dtype]))

    def decode(self, codes: Codes) -> Tensor:  # noqa: D102
        return codes.values.float()

    def fake(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`quantize(x)`; a tensor of this type already is its own, and no copy is made of it."""
        same = x.dtype == DTYPES[self.dtype] and dtype in (None, x.dtype)
        return x.detach() if same else super().fake(x, dtype)

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return 16.0 * math.prod(shape)

    def side_bits(self, shape: Shape) -> float:  # noqa: D102
        return 0.0

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """`values`, in the 16-bit type."""
        return {"values": codes.values.contiguous()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:  # noqa: D102
        return Codes(tensors["values"])

    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: D102
        return {"values": (tuple(shape), DTYPES[self.dtype])}

    @property
    def label(self) -> str:  # noqa: D102
        return "16"
