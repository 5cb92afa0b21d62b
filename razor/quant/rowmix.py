"""Two formats inside one matrix: a fraction of the rows in the higher one, the rest in the lower.

This is how the paper reaches widths between the integers (arXiv 2605.04062): with int4 in half of the rows
and ternary in the others, 0.5 * 4 + 0.5 * 1.58 = 2.79 bits; with an eighth, 1.88. There the higher rows are
every (1/p)-th, from row 0. We spread them evenly for *any* fraction: row `i` is high if `ceil((i + 1) * p)`
is more than `ceil(i * p)`, which for p = 1/n is exactly rows 0, n, 2n, ... The rows follow from the fraction,
so no map of them is stored.

Position says nothing about a row. With `rows="error"` the rows that the lower format hurts most are high: those
with the largest gain in squared error. They are chosen once, when the format is bound to a weight, or by
scores from elsewhere (`choose`); the map, one bit a row, is then stored and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from razor.errors import RazorError
from razor.quant.codes import Codes
from razor.quant.format import Format, Shape
from razor.quant.grouped import Grouped
from razor.quant.packing import bytes_of_bits, pack_bits, unpack_bits
from razor.spec import read

EVEN, ERROR, MAP = "even", "error", "map:"
"""Which rows are high: spread evenly; those that gain most; those of a map that follows."""


def map_of(chosen: Tensor) -> str:
    """`rows=` for a choice of rows: [rows] bool -> "map:" and a hexadecimal digit for every four of them."""
    bits = [int(bit) for bit in chosen.tolist()]
    fours = [sum(bit << place for place, bit in enumerate(bits[i : i + 4])) for i in range(0, len(bits), 4)]
    return MAP + "".join(f"{four:x}" for four in fours)


def rows_of(text: str, rows: int) -> Tensor:
    """[rows] bool: inverse of `map_of`; what lies beyond the last row is left out."""
    digits = torch.tensor([int(digit, 16) for digit in text.removeprefix(MAP)])
    return ((digits.unsqueeze(1) >> torch.arange(4)) & 1).bool().flatten()[:rows]


def even_rows(rows: int, fraction: float) -> Tensor:
    """[rows] bool: which rows are high; `ceil(rows * fraction)` of them, evenly spread from row 0."""
    exact = _exact(fraction)
    missing = (-torch.arange(rows) * exact.numerator) % exact.denominator  # from i * p up to a whole number
    return missing < exact.numerator


def count_high(rows: int, fraction: float) -> int:
    """How many of the rows are high: `ceil(rows * fraction)`."""
    return math.ceil(rows * _exact(fraction))


def _exact(fraction: float) -> Fraction:
    return Fraction(fraction).limit_denominator(1 << 20)  # the float 1/3 means one third


def interleaved(rows: list[Tensor], parts: list[Tensor]) -> Tensor:
    """One tensor whose rows `rows[i]` are `parts[i]`, for lists that together name every row once."""
    # a gather: writing to out[rows] is several times slower on a CPU
    return torch.cat(parts).index_select(0, torch.cat(rows).argsort())


class RowMix(Format):
    """Rows of a matrix in two formats of the same group.

    Gradient: each row that of its format.

    Args:
        high: format of the chosen rows.
        low: format of the others.
        fraction: part of the rows that is high, 0..1.
        rows: "even" spreads them; "error" takes those that gain most, and stores which; "map:..." says which (see
            `map_of`), as many as `fraction` has.

    Raises:
        RazorError: fraction outside 0..1, formats whose groups or scale types differ, or no group within a row.
    """

    def __init__(self, high: Grouped, low: Grouped, fraction: float, rows: str = EVEN) -> None:
        super().__init__()
        read(Grouped, high, "high")
        read(Grouped, low, "low")
        read(float, fraction, "fraction")
        if not 0 <= fraction <= 1:
            raise RazorError(f"Row fraction '{fraction}' must lie in 0..1.")
        if high.group != low.group:
            raise RazorError(
                f"Formats mixed by rows need one group, not {high.group} (high) and {low.group} (low)."
            )
        if high.group == "tensor":
            raise RazorError(
                "Formats mixed by rows need groups within a row: a number or 'row', not 'tensor'."
            )
        if high.scale_dtype != low.scale_dtype:
            raise RazorError(
                f"Formats mixed by rows need one scale_dtype, not {high.scale_dtype} (high) and "
                f"{low.scale_dtype} (low)."
            )
        read(str, rows, "rows")
        if rows not in (EVEN, ERROR) and not re.fullmatch(f"{MAP}[0-9a-f]+", rows):
            raise RazorError(f"RowMix rows='{rows}'. Choices: {EVEN}, {ERROR}, {MAP} and hexadecimal digits.")
        self.high, self.low, self.fraction, self.rows = high, low, float(fraction), rows
        self.chosen: Tensor | None
        self.register_buffer("chosen", None)

    @property
    def per_token(self) -> bool:  # noqa: D102 - see Format
        return False

    def _sizes(self, shape: Shape) -> tuple[tuple[str, Grouped, tuple[int, ...]], ...]:
        many = count_high(shape[0], self.fraction)
        sizes = ("high", self.high, many), ("low", self.low, shape[0] - many)
        return tuple((name, part, (rows, *shape[1:])) for name, part, rows in sizes)

    def check(self, shape: Shape, where: str) -> None:  # noqa: D102 - see Format
        self.high.check(shape, where)
        if self.rows.startswith(MAP):
            digits, many = len(self.rows) - len(MAP), count_high(shape[0], self.fraction)
            found = int(rows_of(self.rows, shape[0]).sum())
            if digits != math.ceil(shape[0] / 4) or found != many:
                raise RazorError(
                    f"The map of rows of '{where}' has {digits} digits and {found} high rows; {shape[0]} rows with "
                    f"fraction {self.fraction:g} high have {math.ceil(shape[0] / 4)} digits and {many} of them. "
                    "A map belongs to the matrix that it was made for: is this the plan of another model?"
                )

    def gain(self, x: Tensor) -> Tensor:
        """[rows] squared error that each row loses by being high."""
        x = x.contiguous()  # or equal rows may differ in the last bit, by the order of their sums
        errors = [(part.quantize(x).float() - x.float()).square().sum(-1) for part in (self.low, self.high)]
        return errors[0] - errors[1]

    def top(self, scores: Tensor) -> Tensor:
        """[rows] bool: `ceil(rows * fraction)` rows of highest score; among equals the earlier."""
        many = count_high(len(scores), self.fraction)
        chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        chosen[scores.argsort(descending=True, stable=True)[:many]] = True
        return chosen

    def rows_high(self, x: Tensor) -> Tensor:
        """[rows] bool: which rows of `x` are high."""
        if self.rows == EVEN:
            return even_rows(len(x), self.fraction).to(x.device)
        if self.chosen is not None:
            return self.chosen
        if self.rows.startswith(MAP):
            return rows_of(self.rows, len(x)).to(x.device)
        return self.top(self.gain(x.detach()))

    def bind(self, weight: Tensor) -> Format:
        """Fix which rows are high, and bind both formats to theirs."""
        return self._bound(weight, self.rows_high(weight))

    def choose(self, weight: Tensor, scores: Tensor) -> RowMix:
        """As `bind`, with the rows of highest score high (for rows="error"): [rows], any unit."""
        if self.rows != ERROR or len(scores) != len(weight):
            raise RazorError(
                f"RowMix.choose needs rows='error' and a score a row, not rows='{self.rows}' and "
                f"{len(scores)} scores for {len(weight)} rows."
            )
        return self._bound(weight, self.top(scores))

    def _bound(self, weight: Tensor, chosen: Tensor) -> RowMix:
        # by index lists: on the meta device a mask would have no known size
        many = count_high(len(weight), self.fraction)
        order = torch.argsort((~chosen).to(torch.uint8), stable=True)
        high, low = self.high.bind(weight[order[:many]]), self.low.bind(weight[order[many:]])
        if self.rows == EVEN and high is self.high and low is self.low:
            return self
        assert isinstance(high, Grouped) and isinstance(low, Grouped)
        bound = RowMix(high, low, self.fraction, self.rows)
        if self.rows != EVEN:
            bound.chosen = chosen
        return bound

    def _parts(self, chosen: Tensor) -> tuple[tuple[str, Grouped, Tensor], ...]:
        return (
            ("high", self.high, chosen.nonzero().squeeze(1)),
            ("low", self.low, (~chosen).nonzero().squeeze(1)),
        )

    def _joined(self, parts: list[tuple[Tensor, Codes]], high: Tensor | None) -> Codes:
        """One `Codes` from those of the parts, each with its rows."""
        rows, codes = [rows for rows, _ in parts], [codes for _, codes in parts]
        scales = [part.scales for part in codes if part.scales is not None]
        zeros = None
        if any(part.zeros is not None for part in codes):
            none = [torch.zeros_like(part, dtype=torch.int8) for part in scales]
            zeros = [n if part.zeros is None else part.zeros for n, part in zip(none, codes, strict=True)]
        return Codes(
            interleaved(rows, [part.values for part in codes]),
            interleaved(rows, scales),
            None if zeros is None else interleaved(rows, zeros),
            high,
        )

    def encode(self, x: Tensor) -> Codes:  # noqa: D102
        chosen = self.rows_high(x)
        parts = [
            (rows, part.encode(x.detach().index_select(0, rows))) for _, part, rows in self._parts(chosen)
        ]
        return self._joined(parts, None if self.rows == EVEN else chosen)

    def _chosen(self, codes: Codes) -> Tensor:
        if codes.high is not None:
            return codes.high
        return even_rows(codes.shape[0], self.fraction).to(codes.values.device)

    def decode(self, codes: Codes) -> Tensor:  # noqa: D102
        parts = self._parts(self._chosen(codes))
        decoded = [part.decode(codes.rows(rows)) for _, part, rows in parts]
        return interleaved([rows for *_, rows in parts], decoded)

    def quantize(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:  # noqa: D102
        return self._by_rows(x, dtype, "quantize")

    def fake(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:  # noqa: D102
        return self._by_rows(x, dtype, "fake")

    def _by_rows(self, x: Tensor, dtype: torch.dtype | None, method: str) -> Tensor:
        parts, dtype = self._parts(self.rows_high(x)), dtype or x.dtype
        done = [getattr(part, method)(x.detach().index_select(0, rows), dtype) for _, part, rows in parts]
        return interleaved([rows for *_, rows in parts], done)

    @property
    def straight_through(self) -> bool:  # noqa: D102
        return self.high.straight_through and self.low.straight_through

    def learned(self) -> list[nn.Parameter]:  # noqa: D102
        return [*self.high.learned(), *self.low.learned()]

    def moment(self) -> tuple[Any, ...]:  # noqa: D102
        chosen = None if self.chosen is None else (self.chosen.data_ptr(), self.chosen._version)
        return (*self.high.moment(), *self.low.moment(), chosen)

    def gradients(self, latent: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        parts = self._parts(self.rows_high(latent))
        found = [
            part.gradients(latent.index_select(0, rows), gradient.index_select(0, rows))
            for _, part, rows in parts
        ]
        own = interleaved([rows for *_, rows in parts], [first.float() for first, *_ in found])
        return (own, *(learned for _, *others in found for learned in others))

    def code_bits(self, shape: Shape) -> float:  # noqa: D102
        return sum(part.code_bits(size) for _, part, size in self._sizes(shape))

    def side_bits(self, shape: Shape) -> float:
        """Bits of scales, zero points and, if it is stored, the map of rows (one bit each)."""
        stored = 0 if self.rows == EVEN else shape[0]
        return stored + sum(part.side_bits(size) for _, part, size in self._sizes(shape))

    def pack(self, codes: Codes) -> dict[str, Tensor]:
        """`high.*` and `low.*`: each the rows of that format, in order; `map`, if it is stored, a bit a row."""
        packed: dict[str, Tensor] = {}
        for name, part, rows in self._parts(self._chosen(codes)):
            packed |= {f"{name}.{key}": tensor for key, tensor in part.pack(codes.rows(rows)).items()}
        if codes.high is not None:
            packed["map"] = pack_bits(codes.high.to(torch.uint8), 1)
        return packed

    def unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Codes:  # noqa: D102
        device, high = tensors["high.scales"].device, None
        if self.rows != EVEN:
            high = unpack_bits(tensors["map"], 1, shape[0]).bool()
        chosen = even_rows(shape[0], self.fraction).to(device) if high is None else high
        parts = []
        for name, part, rows in self._parts(chosen):
            own = {
                key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")
            }
            parts.append((rows, part.unpack(own, (len(rows), *shape[1:]))))
        return self._joined(parts, high)

    def packed_layout(self, shape: Shape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # noqa: D102
        layout = {
            f"{name}.{key}": kind
            for name, part, size in self._sizes(shape)
            for key, kind in part.packed_layout(size).items()
        }
        if self.rows != EVEN:
            layout["map"] = ((bytes_of_bits(shape[0], 1),), torch.uint8)
        return layout

    @property
    def label(self) -> str:
        """The mixed width to two digits, as the paper writes it: 1.88 for 1.8825."""
        mixed = self.fraction * float(self.high.label) + (1 - self.fraction) * float(self.low.label)
        return f"{mixed:.2f}".rstrip("0").rstrip(".")
