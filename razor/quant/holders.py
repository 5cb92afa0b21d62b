"""Which stock file types hold a format's codes exactly.

An exporter may write codes into another layout, but never round again: a type holds a format if code times
scale comes out as the very numbers the student was trained with. The facts, in blocks along a row:

* GGUF Q4_0, Q5_0, Q8_0: blocks of 32 with one fp16 scale, codes -8..7, -16..15, -127..127; 4.5, 5.5 and 8.5 bits.
* GGUF TQ1_0, TQ2_0: blocks of 256 with one fp16 scale, codes -1..1; 1.6875 and 2.0625 bits.
* GPTQ: 2, 3, 4 or 8 bits with a zero point a group of 32, 64, 128 or a row, fp16 scales.
* compressed-tensors `pack-quantized`: 4 or 8 bits, symmetric or with zero points, groups that are multiples
  of 32, or rows; 16-bit scales.

A group that is a multiple of a block repeats its scale. Levels without a zero, (code + 1/2) * s, are odd
multiples of s / 2, which is exact in fp16 unless s is subnormal there: 2-bit elastic levels fit Q4_0 that way.
A matrix mixed by rows has one type for all its rows.
"""

from __future__ import annotations

from razor.quant.float16 import Float16
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.rowmix import RowMix

GGUF = {
    "TQ1_0": (256, -1, 1, 1.6875),
    "TQ2_0": (256, -1, 1, 2.0625),
    "Q4_0": (32, -8, 7, 4.5),
    "Q5_0": (32, -16, 15, 5.5),
    "Q8_0": (32, -127, 127, 8.5),
}
"""Block length, least and largest code, bits per weight."""


def gguf_types(format: Format, columns: int) -> dict[str, float]:
    """GGUF types that hold a matrix with rows of this length exactly, and their bits per weight; smallest first."""
    if isinstance(format, Float16):
        return {"BF16" if format.dtype == "bfloat16" else "F16": 16.0}
    parts = _parts(format)
    return {
        name: bits
        for name, (block, lowest, highest, bits) in GGUF.items()
        if all(_fits(part, columns, block, lowest, highest) for part in parts)
    }


def _fits(part: Grouped, columns: int, block: int, lowest: int, highest: int) -> bool:
    shared = part.group if isinstance(part.group, int) else columns
    odd = 2 if part.shift else 1  # half steps count twice
    low, high = odd * (part.lowest + part.shift), odd * (part.highest + part.shift)
    return (
        columns % block == 0
        and shared % block == 0
        and part.scale_dtype == "float16"
        and not part.zero_width
        and lowest <= low
        and high <= highest
    )


def gptq_bits(format: Format, columns: int) -> int | None:
    """Code bits of the GPTQ file that holds the format exactly, or None."""
    found = _one(format, columns, (32, 64, 128), columns)
    if found is None or found.scale_dtype != "float16":
        return None
    return _width(found, (2, 3, 4, 8))


def compressed_tensors_bits(format: Format, columns: int) -> int | None:
    """Code bits of the compressed-tensors file that holds the format exactly, or None."""
    groups = tuple(range(32, columns + 1, 32))
    found = _one(format, columns, groups, columns)
    return None if found is None else _width(found, (4, 8))


def _one(format: Format, columns: int, groups: tuple[int, ...], row: int) -> Grouped | None:
    """The format if it is a single one with whole codes and a group among the given, or a multiple that repeats."""
    if not isinstance(format, Grouped) or format.shift:
        return None
    group = format.group if isinstance(format.group, int) else row
    return format if group == row or any(group % size == 0 for size in groups) else None


def _width(format: Grouped, widths: tuple[int, ...]) -> int | None:
    """The least width whose unsigned codes, with a zero point, span the format's."""
    return next((w for w in widths if format.highest - format.lowest < 2**w), None)


def _parts(format: Format) -> list[Grouped]:
    if isinstance(format, RowMix):
        used = ((format.high, format.fraction > 0), (format.low, format.fraction < 1))
        return [part for part, any_row in used if any_row]
    return [format] if isinstance(format, Grouped) else []
