"""A number format: how real numbers become codes and come back.

Quantization-aware training needs three views of one format. `encode` / `decode` say what is stored;
`quantize` is their composition, `decode(encode(x))`, computed in one go; `forward` is `quantize` with a
gradient. Rounding has derivative zero almost everywhere, so the gradient is passed *straight through*
(Bengio et al., arXiv 1308.3432): the backward pass treats `forward` as the identity and the latent
full-precision weight keeps moving until its code flips. A format may state another rule (`gradients`).

A plan holds formats as descriptions, shared by many weights. Some formats have something of their own for
each weight, a learned scale or a map of rows; `bind` makes that, once, from the weight as it is then.

A new format subclasses `Format` (or `Grouped`), states its formulas, and gets a yaml in
`conf/quant/format/`; packing, plans, accounting, checkpoints and the law tests pick it up by themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.spec import from_spec, spec_of

Shape = Sequence[int]


class GradientRule(Protocol):
    """What `FakeQuantize` asks in the backward pass: a format, or a weight's quantizer in front of one."""

    @property
    def straight_through(self) -> bool:
        """See `Format`."""

    def gradients(self, latent: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        """See `Format`."""


class FakeQuantize(torch.autograd.Function):
    """Forward: the quantized tensor. Backward: what the format says, by default the gradient unchanged."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, latent: Tensor, quantized: Tensor, rule: GradientRule, *learned: Tensor
    ) -> Tensor:
        ctx.dtype, ctx.rule = latent.dtype, rule
        if not rule.straight_through:  # an activation saved for nothing would cost memory
            ctx.save_for_backward(latent)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (gradient,) = gradients
        if ctx.rule.straight_through:
            return gradient.to(ctx.dtype), None, None
        latent, *learned = ctx.rule.gradients(ctx.saved_tensors[0], gradient)
        return latent.to(ctx.dtype), None, None, *learned


class Format(nn.Module, ABC):
    """Base of all number formats; acts on the last dimension of a tensor.

    Constructor arguments must be stored under their own names: `spec` reads them back from there.
    """

    @property
    def straight_through(self) -> bool:
        """Whether the gradient passes unchanged; otherwise `gradients` has the rule."""
        return True

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
    def side_bits(self, shape: Shape) -> float:
        """Bits of all that is stored beside the codes: scales, zero points, maps of rows."""

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

    @property
    def per_token(self) -> bool:
        """Whether [..., columns] is quantized vector by vector, as activations and keys have to be."""
        return True

    def check(self, shape: Shape, where: str) -> None:
        """Raise RazorError if a tensor of this shape, found at module `where`, cannot be held."""

    def check_tokens(self, width: int, where: str) -> None:
        """Raise RazorError if activations or keys [..., width] of module `where` cannot be quantized by this."""
        self.check((width,), where)
        if not self.per_token:
            raise RazorError(
                f"Format {type(self).__name__}({self.extra_repr()}) has scales that tokens would share or that "
                f"belong to a weight; '{where}' needs one that quantizes every token by itself: "
                "Integer or another plain format, its group a number or 'row'."
            )

    def bind(self, weight: Tensor) -> Format:
        """The format for one weight [rows, columns]: itself, or a copy with state made from the weight."""
        return self

    def learned(self) -> list[nn.Parameter]:
        """Parameters of a bound format, in the order in which `gradients` gives their gradients."""
        return []

    def gradients(self, latent: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of `latent` and of each of `learned()`, given that of the quantized tensor."""
        return (gradient,)

    def moment(self) -> tuple[Any, ...]:
        """Whatever the result depends on beside the weight; a remembered result holds while this is the same."""
        return ()

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`decode(encode(x))`, decoded in fp32 and rounded once to `dtype` (default: that of `x`)."""
        return self.decode(self.encode(x)).to(dtype or x.dtype)

    def fake(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What training computes with: `quantize(x)`, unless the format is softened for a while."""
        return self.quantize(x, dtype)

    # Compilers must not look inside: inductor takes fp32 -> fp16 -> fp32 for a round trip that can be left
    # out, and the rounding of the scales with it.
    @torch.compiler.disable
    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`fake(x)` with the format's gradient."""
        with torch.no_grad():
            quantized = self.fake(x, dtype)
        if not torch.is_grad_enabled():  # answering token by token, small costs count
            return quantized
        return FakeQuantize.apply(x, quantized, self, *self.learned())

    def bits(self, shape: Shape) -> float:
        """All stored bits of a tensor of this shape, scales included, by the paper's accounting."""
        return self.code_bits(shape) + self.side_bits(shape)

    def packed_bytes(self, shape: Shape) -> int:
        """Bytes that `pack` really takes for a tensor of this shape."""
        return sum(math.prod(size) * kind.itemsize for size, kind in self.packed_layout(shape).values())

    def spec(self) -> dict[str, Any]:
        """A plain description from which `from_spec` builds the same format."""
        return spec_of(self)

    @staticmethod
    def from_spec(spec: Mapping[str, Any], where: str = "a plan") -> Format:
        """Build a format from its `spec`. Only formats whose module was imported can be named.

        Raises:
            RazorError: unknown kind or arguments; the text begins with `where`.
        """
        return from_spec(Format, spec, where)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return ", ".join(
            f"{key}={value}"
            for key, value in self.spec().items()
            if key != "kind" and not isinstance(value, dict)
        )
