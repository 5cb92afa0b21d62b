"""Two formats inside one matrix: a fraction of the rows in the higher one, the rest in the lower.

This is how the paper reaches widths between the integers (arXiv 2605.04062): with int4 in half of the rows
and ternary in the others, 0.5 * 4 + 0.5 * 1.58 = 2.79 bits; with an eighth, 1.88. There the higher rows are
every (1/p)-th, from row 0. We spread them evenly for *any* fraction: row `i` is high if `ceil((i + 1) * p)`
is more than `ceil(i * p)`, which for p = 1/n is exactly rows 0, n, 2n, ... The rows follow from the fraction,
so no map of them is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.quant.format import Format, Shape
from razor.quant.grouped import Grouped


def even_rows(rows: int, fraction: float) -> Tensor:
    """[rows] bool: which rows are high; `ceil(rows * fraction)` of them, evenly spread from row 0."""
    exact = Fraction(fraction).limit_denominator(1 << 20)  # the float 1/3 means one third
    missing = (-torch.arange(rows) * exact.numerator) % exact.denominator  # from i * p up to a whole number
    return missing < exact.numerator


class RowMix(Format):
    """Rows of a matrix in two formats of the same group.

    Gradient: straight through, everywhere.

    Args:
        high: format of the chosen rows.
        low: format of the others.
        fraction: part of the rows that is high, 0..1.

    Raises:
        RazorError: fraction outside 0..1, or formats whose groups differ.
    """

    def __init__(self, high: Grouped, low: Grouped, fraction: float) -> None:
        super().__init__()
        if not 0 <= fraction <= 1:
            raise RazorError(f"Row fraction '{fraction}' must lie in 0..1 (quant.weights.fraction=...).")
        if high.group != low.group:
            raise RazorError(
                f"Formats mixed by rows need one group, not {high.group} (high) and {low.group} (low)."
            )
        self.high, self.low, self.fraction = high, low, float(fraction)

    def _parts(self, rows: int) -> tuple[tuple[str, Grouped, Tensor], ...]:
        chosen = even_rows(rows, self.fraction)
        return (
            ("high", self.high, chosen.nonzero().squeeze(1)),
            ("low", self.low, (~chosen).nonzero().squeeze(1)),
        )

    def _sizes(self, shape: Shape) -> tuple[tuple[str, Grouped, tuple[int, ...]], ...]:
        return tuple((name, part, (len(rows), *shape[1:])) for name, part, rows in self._parts(shape[0]))

    def check(self, shape: Shape, where: str) -> None:  # noqa: D102 - see Format
        self.high.check(shape, where)

    def encode(self, x: Tensor) -> Codes:  # noqa: D102
        values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
        scales = torch.empty(
            (*x.shape[:-1], x.shape[-1] // self.high.group), dtype=torch.float16, device=x.device
        )
        for _, part, rows in self._parts(x.shape[0]):
            codes = part.encode(x.detach()[rows])
            assert codes.scales is not None
            values[rows], scales[rows] = codes.values, codes.scales
        return Codes(values, scales)

    def decode(self, codes: Codes) -> Tensor:
        """All symmetric formats decode alike: code times scale."""
        return self.high.decode(codes)

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:  # noqa: D102
        out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
        for _, part, rows in self._parts(x.shape[0]):
            out[rows] = part.quantize(x.detach()[rows], out.dtype)
        return out

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return sum(part.code_bits(size) for _, part, size in self._sizes(shape))

    def scale_bits(self, shape: Shape) -> float:  # noqa: D102
        return sum(part.scale_bits(size) for _, part, size in self._sizes(shape))

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """`high.codes`, `high.scales`, `low.codes`, `low.scales`: each the rows of that format, in order."""
        assert codes.scales is not None
        packed: dict[str, Tensor] = {}
        for name, part, rows in self._parts(codes.shape[0]):
            tensors = part.pack(Codes(codes.values[rows], codes.scales[rows]))
            packed |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        return packed

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:  # noqa: D102
        device = tensors["high.scales"].device
        values = torch.empty(tuple(shape), dtype=torch.int8, device=device)
        scales = torch.empty((*shape[:-1], shape[-1] // self.high.group), dtype=torch.float16, device=device)
        for name, part, rows in self._parts(shape[0]):
            own = {key: tensors[f"{name}.{key}"] for key in ("codes", "scales")}
            codes = part.unpack(own, (len(rows), *shape[1:]))
            assert codes.scales is not None
            values[rows], scales[rows] = codes.values, codes.scales
        return Codes(values, scales)

    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: D102
        return {
            f"{name}.{key}": layout
            for name, part, size in self._sizes(shape)
            for key, layout in part.packed_layout(size).items()
        }

    @property
    def label(self) -> str:
        """The mixed width to two digits, as the paper writes it: 1.88 for 1.8825."""
        mixed = self.fraction * float(self.high.label) + (1 - self.fraction) * float(self.low.label)
        return f"{mixed:.2f}".rstrip("0").rstrip(".")
