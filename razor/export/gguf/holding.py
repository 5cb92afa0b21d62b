"""Which GGUF type holds a weight of ours exactly, and its codes as that type wants them.

A type holds a format if its codes reach far enough, its blocks lie within one group (the scale is repeated) and it
has a zero point where the format has one. Of those that do, the smallest is taken. Nothing is rounded:

- ternary and other codes in -1..1 are written as they are;
- levels on both sides of zero (`StretchedElastic` of four, x = (code + 1/2) s) are odd multiples of s/2;
- an asymmetric format needs groups of 256: only the K types have zero points, and exact ones;
- of a matrix mixed by rows, both formats have to fit into one type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.gguf.blocks import Q2_0, Q4_0, Q5_0, Q8_0, TQ1_0, TQ2_0, BlockType, Halves, Ints
from razor.export.gguf.super_blocks import Q2_K, Q2_K_BALANCED, Q3_K, Q4_K, Q6_K
from razor.quant import Codes, Float16, Format, Grouped, RowMix
from razor.quant.rowmix import even_rows

PLAIN = {"float32": ("F32", 0, 0, 4), "float16": ("F16", 1, 1, 2), "bfloat16": ("BF16", 30, 32, 2)}
"""Types without blocks: name in GGUF, ggml's number, llama.cpp's number of such a file, bytes of a number."""

SMALLEST = 32
"""Columns of the smallest block."""


@dataclass(frozen=True)
class Held:
    """Codes as a block type has them.

    Attributes:
        values: int8 [rows, columns].
        scales: fp16 [rows, columns / block].
        zeros: zero points like `scales`; None for a type without them.
    """

    values: Ints
    scales: Halves
    zeros: Ints | None = None

    def rows(self, index: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Some rows as `BlockType.pack` wants them, block by block."""
        size = self.values.shape[1] // self.scales.shape[1]
        given: list[np.ndarray[Any, Any]] = [
            self.values[index].reshape(-1, size),
            self.scales[index].reshape(-1),
        ]
        return given if self.zeros is None else [*given, self.zeros[index].reshape(-1)]


def block_types(ternary: str, q2_0: bool) -> list[BlockType]:
    """Types to choose from, the preferred first.

    Args:
        ternary: "tq1_0" or "tq2_0", the one that is used.
        q2_0: whether Q2_0 may be used, which older versions of llama.cpp do not know.
    """
    trits = [TQ2_0] if ternary == "tq2_0" else [TQ1_0]
    return [*trits, *([Q2_0] if q2_0 else []), Q2_K, Q2_K_BALANCED, Q3_K, Q4_0, Q4_K, Q5_0, Q6_K, Q8_0]


def _parts(format: Format) -> list[Grouped]:
    if isinstance(format, RowMix):
        return [format.high, format.low]
    return [format] if isinstance(format, Grouped) else []


def holder(format: Format, columns: int, types: Sequence[BlockType]) -> BlockType | str:
    """The first of `types` that holds a format exactly in rows of so many columns; or why none does."""
    parts = _parts(format)
    if not parts:
        return f"{type(format).__name__} is no format with codes and scales"
    if columns % SMALLEST:
        return f"its rows of {columns} are no multiple of {SMALLEST}, GGUF's smallest block"
    group = parts[0].group
    run = group if isinstance(group, int) else columns
    asymmetric = any(part.zero_width for part in parts)
    for block in types:
        if columns % block.size or run % block.size or (asymmetric and not block.zeros):
            continue
        if all(_fits(part, block) for part in parts):
            return block
    if asymmetric:
        return f"only groups of 256 have zero points in GGUF, not {run}"
    return f"no block of GGUF lies within its groups of {run}"


def _fits(part: Grouped, block: BlockType) -> bool:
    lowest, highest = _reach(part)
    if block.odd and part.shift != 0.5:
        return False
    if not block.zeros:
        return block.lowest <= lowest and highest <= block.highest
    zero = 2**part.zero_width - 1 if part.zero_width else -lowest
    return highest + (0 if part.zero_width else zero) <= block.highest and zero <= block.zeros


def _reach(part: Grouped) -> tuple[int, int]:
    """Lowest and highest code, in whole multiples of the scale that is written."""
    return (2 * part.lowest + 1, 2 * part.highest + 1) if part.shift == 0.5 else (part.lowest, part.highest)


def held(codes: Codes, format: Format, block: BlockType, name: str) -> Held:
    """The codes of a weight as a type that holds its format has them.

    Args:
        codes: of the weight `name`, [rows, columns].
        format: of which they are.
        block: from `holder`.
        name: for error texts.

    Raises:
        RazorError: a scale that fp16 does not hold (a bf16 scale out of its range, half of fp16's smallest).
    """
    rows, columns = codes.values.shape
    values, scales = codes.values.clone(), _per_block(codes.scales, rows, columns // block.size).float()
    zeros = None
    if block.zeros:
        zeros = torch.zeros(scales.shape, dtype=torch.int8)
    for part, index in _rows(codes, format):
        if part.shift == 0.5:
            values[index] = 2 * values[index] + 1
            scales[index] = scales[index] / 2
        if zeros is not None:
            zero = 0 if part.zero_width else -_reach(part)[0]
            zeros[index] = zero
            values[index] = values[index] + zero
            if part.zero_width:
                zeros[index] = _per_block(codes.zeros, rows, zeros.shape[1])[index]
    halves = scales.half()
    if not torch.equal(halves.float(), scales):
        worst = scales[halves.float() != scales][0].item()
        raise RazorError(
            f"'{name}' has a scale of {worst:.6g}, which GGUF's fp16 scales do not hold exactly: train with "
            "scale_dtype=float16, or export with export.gguf.dtype=f32."
        )
    return Held(values.numpy(), halves.numpy(), None if zeros is None else zeros.numpy())


def _per_block(scales: Tensor | None, rows: int, blocks: int) -> Tensor:
    """Scales (or zero points) of groups as those of blocks: repeated along the row, and over rows if shared."""
    assert scales is not None
    whole = scales.expand(rows, -1)
    return whole.repeat_interleave(blocks // whole.shape[1], dim=1)


def _rows(codes: Codes, format: Format) -> Iterator[tuple[Grouped, Tensor | slice]]:
    if not isinstance(format, RowMix):
        yield _parts(format)[0], slice(None)
        return
    high = even_rows(codes.shape[0], format.fraction) if codes.high is None else codes.high
    yield format.high, high.nonzero().squeeze(1)
    yield format.low, (~high).nonzero().squeeze(1)


def as_written(format: Format, f32: bool, columns: int, types: Sequence[BlockType]) -> BlockType | str:
    """What a weight is written in: a block type, or the name of a type without blocks (a key of PLAIN).

    Raises:
        RazorError: nothing holds it exactly; the text says why.
    """
    if f32:
        return "float32"
    if isinstance(format, Float16):
        return format.dtype
    found = holder(format, columns, types)
    if isinstance(found, BlockType):
        return found
    if _parts(format) and columns % SMALLEST:  # nothing but plain numbers can have such rows
        return "float32"
    raise RazorError(found)
