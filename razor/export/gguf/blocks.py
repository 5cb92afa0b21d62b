"""GGUF's block types: how integer codes with one fp16 scale are laid out in bytes.

A GGUF matrix is rows of blocks, and each block holds the codes of 32, 64 or 256 neighbours and their scale `d`.
What a quantizer of llama.cpp would do with a matrix is of no interest here: it looks for scales of its own, and
finds others (for Q4_0 the largest magnitude / -8). Our codes exist already, so they are written into the blocks as
they are, and a longer group of ours repeats its scale.

    type   numbers  bytes  bits    codes      stored
    TQ1_0  256      54     1.6875  -1..1      five trits a byte, as a fraction of 243 in 256ths
    TQ2_0  256      66     2.0625  -1..1      code + 1 in two bits
    Q2_0   64       18     2.25    -1..2      code + 1 in two bits; llama.cpp 0.5 and later
    Q2_K   256      84     2.625   (0..3) - z  two bits; sixteen scales and minima of four bits. Or -3, -1, 1, 3
    Q3_K   256      110    3.4375  -4..3      two bits, one bit; sixteen scales of six bits
    Q4_0   32       18     4.5     -8..7      code + 8 in four bits
    Q4_K   256      144    4.5     (0..15) - z  four bits; eight scales and minima of six bits
    Q5_0   32       22     5.5     -16..15    code + 16 in four bits, and one
    Q6_K   256      210    6.5625  -32..31    code + 32 in four bits, and two; sixteen scales of eight bits
    Q8_0   32       34     8.5     -128..127  as it is

The K types have scales of parts of a block, as whole multiples of `d`. With every multiple at 1 they hold one scale
per 256, ours; a minimum is a whole multiple of a second scale, and makes a zero point of up to 15 or 63.
Layouts after ggml's `dequantize_row_*` (ggml-quants.c), which the tests hold them against by way of the gguf
package; Q2_0 against llama.cpp itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int8]
Halves = NDArray[np.float16]

POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


@dataclass(frozen=True)
class BlockType:
    """One type of block.

    Attributes:
        name: in GGUF.
        number: ggml's.
        file_type: llama.cpp's number of a file that is mostly of this type.
        size: codes of a block.
        bytes: of a block.
        lowest: code; with a zero point, 0.
        highest: code.
        pack: codes int8 [blocks, size], scales fp16 [blocks], perhaps zero points int8 [blocks] -> uint8 [blocks,
            bytes].
        unpack: its inverse.
        zeros: highest zero point; 0: it has none.
        odd: it holds odd multiples of its scale only.
    """

    name: str
    number: int
    file_type: int
    size: int
    bytes: int
    lowest: int
    highest: int
    pack: Callable[..., Bytes]
    unpack: Callable[[Bytes], tuple[Ints, ...]]
    zeros: int = 0
    odd: bool = False

    @property
    def decoder(self) -> str:
        """llama.cpp's function that decodes it."""
        return f"dequantize_row_{self.name.replace('Q', 'q').replace('T', 't')}"


def lifted(codes: Ints, offset: int) -> Bytes:
    """Codes + offset, as bytes."""
    return (codes + np.int8(offset)).view(np.uint8)


def _scale(scales: Halves) -> Bytes:
    return scales.reshape(-1, 1).view(np.uint8)


def _halves(raw: Bytes) -> Halves:
    return np.ascontiguousarray(raw).view(np.float16).reshape(-1)


def spread_bits(codes: NDArray[Any], width: int, run: int) -> Bytes:
    """Codes [blocks, n] of `width` bits into bytes: one from each of `8 / width` runs of `run` codes."""
    per = 8 // width
    runs = codes.reshape(len(codes), -1, per, run)
    out = runs[:, :, 0].copy()
    for index in range(1, per):
        out |= runs[:, :, index] << (width * index)
    return out.reshape(len(codes), -1)


def gathered_bits(packed: Bytes, width: int, run: int) -> Bytes:
    """Inverse of `spread_bits`."""
    parts = packed.reshape(len(packed), -1, 1, run)
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    return ((parts >> shifts) & np.uint8(2**width - 1)).reshape(len(packed), -1)


def _pack_tq1(codes: Ints, scales: Halves) -> Bytes:
    trits = lifted(codes, 1)
    parts = [_trits(trits[:, :160], 32), _trits(trits[:, 160:240], 16), _trits(trits[:, 240:], 4)]
    return np.concatenate([*parts, _scale(scales)], axis=1)


def _trits(trits: Bytes, run: int) -> Bytes:
    """Trit n of byte m is number n * run + m; four trits to a byte leave the last place empty."""
    digits = trits.reshape(len(trits), -1, run)
    value = np.zeros((len(trits), run), np.uint16)
    for index in range(digits.shape[1]):
        value += digits[:, index] * POWERS[index]
    return ((value * 256 + 242) // 243).astype(
        np.uint8
    )  # rounded up, so that multiplying brings the digits back


def _unpack_tq1(raw: Bytes) -> tuple[Ints, ...]:
    parts = []
    for start, run, count in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        byte = raw[:, None, start : start + run]
        shifted = byte * np.array([1, 3, 9, 27, 81], np.uint8)[:count].reshape(1, -1, 1)  # modulo 256
        parts.append(((shifted.astype(np.uint16) * 3) >> 8).reshape(len(raw), -1))
    return np.concatenate(parts, axis=1).astype(np.int8) - np.int8(1), _halves(raw[:, 52:])  # type: ignore[return-value]


def _pack_tq2(codes: Ints, scales: Halves) -> Bytes:
    return np.concatenate([spread_bits(lifted(codes, 1), 2, 32), _scale(scales)], axis=1)


def _unpack_tq2(raw: Bytes) -> tuple[Ints, ...]:
    return gathered_bits(raw[:, :64], 2, 32).view(np.int8) - np.int8(1), _halves(raw[:, 64:])  # type: ignore[return-value]


def _pack_q2(codes: Ints, scales: Halves) -> Bytes:
    return np.concatenate([_scale(scales), spread_bits(lifted(codes, 1), 2, 1)], axis=1)


def _unpack_q2(raw: Bytes) -> tuple[Ints, ...]:
    return gathered_bits(raw[:, 2:], 2, 1).view(np.int8) - np.int8(1), _halves(raw[:, :2])  # type: ignore[return-value]


def _pack_q4(codes: Ints, scales: Halves) -> Bytes:
    return np.concatenate([_scale(scales), spread_bits(lifted(codes, 8), 4, 16)], axis=1)


def _unpack_q4(raw: Bytes) -> tuple[Ints, ...]:
    return gathered_bits(raw[:, 2:], 4, 16).view(np.int8) - np.int8(8), _halves(raw[:, :2])  # type: ignore[return-value]


def _pack_q5(codes: Ints, scales: Halves) -> Bytes:
    value = lifted(codes, 16)
    high = np.packbits(value >> 4, axis=1, bitorder="little")
    return np.concatenate([_scale(scales), high, spread_bits(value & 15, 4, 16)], axis=1)


def _unpack_q5(raw: Bytes) -> tuple[Ints, ...]:
    high = np.unpackbits(np.ascontiguousarray(raw[:, 2:6]), axis=1, bitorder="little")
    value = gathered_bits(raw[:, 6:], 4, 16) | (high << 4)
    return value.view(np.int8) - np.int8(16), _halves(raw[:, :2])  # type: ignore[return-value]


def _pack_q8(codes: Ints, scales: Halves) -> Bytes:
    return np.concatenate([_scale(scales), codes.view(np.uint8)], axis=1)


def _unpack_q8(raw: Bytes) -> tuple[Ints, ...]:
    return np.ascontiguousarray(raw[:, 2:]).view(np.int8), _halves(raw[:, :2])  # type: ignore[return-value]


TQ1_0 = BlockType("TQ1_0", 34, 36, 256, 54, -1, 1, _pack_tq1, _unpack_tq1)
TQ2_0 = BlockType("TQ2_0", 35, 37, 256, 66, -1, 1, _pack_tq2, _unpack_tq2)
Q2_0 = BlockType("Q2_0", 42, 41, 64, 18, -1, 2, _pack_q2, _unpack_q2)
Q4_0 = BlockType("Q4_0", 2, 2, 32, 18, -8, 7, _pack_q4, _unpack_q4)
Q5_0 = BlockType("Q5_0", 6, 8, 32, 22, -16, 15, _pack_q5, _unpack_q5)
Q8_0 = BlockType("Q8_0", 8, 7, 32, 34, -128, 127, _pack_q8, _unpack_q8)
