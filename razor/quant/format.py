"""A number format: how real numbers become codes and come back.

Quantization-aware training needs three views of one format. `encode` / `decode` say what is stored;
`quantize` is their composition, `decode(encode(x))`, computed in one go; `forward` is `quantize` with a
gradient. Rounding has derivative zero almost everywhere, so the gradient is passed *straight through*
(Bengio et al., arXiv 1308.3432): the backward pass treats `forward` as the identity and the latent
full-precision weight keeps moving until its code flips.

A new format subclasses `Format` (or `Grouped`), states its formulas, and gets a yaml in
`conf/quant/format/`; packing, plans, accounting, checkpoints and the law tests pick it up by themselves.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from razor.errors import RazorError, did_you_mean
from razor.quant.codes import Codes

Shape = Sequence[int]


class StraightThrough(torch.autograd.Function):
    """Forward: the quantized tensor. Backward: the gradient, unchanged, to the latent one."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, quantized: Tensor) -> Tensor:  # noqa: D102
        ctx.dtype = latent.dtype
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return gradients[0].to(ctx.dtype), None


class Format(nn.Module, ABC):
    """Base of all number formats; acts on the last dimension of a tensor.

    Constructor arguments must be stored under their own names: `spec` reads them back from there.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> Codes:
        """Codes of `x` [..., columns]."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """The numbers that codes stand for, in fp32, shaped like the encoded tensor."""

    @abstractmethod
    def code_bits(self, shape: Shape) -> float:
        """Bits of all codes of a tensor of this shape, by the paper's accounting (a trit is 1.58 bits)."""

    @abstractmethod
    def scale_bits(self, shape: Shape) -> float:
        """Bits of all scales of a tensor of this shape."""

    @abstractmethod
    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """The tensors that are stored for these codes, by a short name."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:
        """Inverse of `pack`."""

    @abstractmethod
    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that `pack` makes for a tensor of this shape."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A few characters for tables: '1.58', '4', ..."""

    def check(self, shape: Shape, where: str) -> None:
        """Raise RazorError if a tensor of this shape, found at module `where`, cannot be held."""

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`decode(encode(x))`, decoded in fp32 and rounded once to `dtype` (default: that of `x`)."""
        return self.decode(self.encode(x)).to(dtype or x.dtype)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`quantize(x)`; gradient straight through to `x`."""
        with torch.no_grad():
            quantized = self.quantize(x, dtype)
        return StraightThrough.apply(x, quantized)

    def bits(self, shape: Shape) -> float:
        """All stored bits of a tensor of this shape, scales included, by the paper's accounting."""
        return self.code_bits(shape) + self.scale_bits(shape)

    def packed_bytes(self, shape: Shape) -> int:
        """Bytes that `pack` really takes for a tensor of this shape."""
        layout = self.packed_layout(shape).values()
        return sum(math.prod(size) * torch.empty((), dtype=kind).element_size() for size, kind in layout)

    def spec(self) -> dict[str, Any]:
        """A plain description from which `from_spec` builds the same format."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"kind": type(self).__name__} | {
            name: value.spec() if isinstance(value, Format) else value for name, value in arguments.items()
        }

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> Format:
        """Build a format from its `spec`. Only formats whose module was imported can be named.

        Raises:
            RazorError: unknown kind or arguments.
        """
        kinds = {kind.__name__: kind for kind in _concrete(Format)}  # type: ignore[type-abstract]
        arguments = dict(spec)
        kind = str(arguments.pop("kind", None))
        if kind not in kinds:
            raise RazorError(f"Unknown number format '{kind}' in a plan.{did_you_mean(kind, kinds)}")
        arguments = {
            name: Format.from_spec(value) if isinstance(value, Mapping) else value
            for name, value in arguments.items()
        }
        try:
            return kinds[kind](**arguments)
        except TypeError as error:
            raise RazorError(f"Number format '{kind}' in a plan: {error}.") from error

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return ", ".join(f"{key}={value}" for key, value in self.spec().items() if key != "kind")


def _concrete(base: type[Format]) -> list[type[Format]]:
    found = [] if inspect.isabstract(base) else [base]
    return found + [kind for child in base.__subclasses__() for kind in _concrete(child)]
