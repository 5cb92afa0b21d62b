"""GGUF's K types, for groups of 256 and their multiples (see `razor.export.gguf.blocks`).

Each is a block of 256 codes with a scale `d` and small whole multiples of it for parts of the block. A group of
ours has one scale for all 256, so every multiple is 1. Where there is a second scale for minima it is `d` again,
and the minimum a multiple of it: `d * code - d * zero`, which fp32 computes without rounding. Four balanced
levels, -3, -1, 1, 3 times a scale h, are Q2_K's codes 0..3 with d = 2h, less three times a second scale of h.
"""

from __future__ import annotations

import numpy as np

from razor.export.gguf.blocks import (
    BlockType,
    Bytes,
    Halves,
    Ints,
    _halves,
    _scale,
    gathered_bits,
    lifted,
    spread_bits,
)

ONE_OF_SIX_BITS = 33
"""Q3_K stores multiples + 32 in six bits."""


def _pack_q2k(codes: Ints, scales: Halves, zeros: Ints) -> Bytes:
    multiples = np.repeat((1 | zeros.view(np.uint8) << 4).reshape(-1, 1), 16, axis=1)
    quants = spread_bits(codes.view(np.uint8), 2, 32)
    return np.concatenate([multiples, quants, _scale(scales), _scale(scales)], axis=1)


def _unpack_q2k(raw: Bytes) -> tuple[Ints, ...]:
    codes = gathered_bits(raw[:, 16:80], 2, 32).view(np.int8)
    return codes, _halves(raw[:, 80:82]), (raw[:, 0] >> 4).view(np.int8)  # type: ignore[return-value]


def _pack_balanced(codes: Ints, scales: Halves) -> Bytes:
    multiples = np.full((len(codes), 16), 1 | 3 << 4, np.uint8)
    quants = spread_bits(lifted(codes, 3) >> 1, 2, 32)
    return np.concatenate([multiples, quants, _scale(scales * np.float16(2)), _scale(scales)], axis=1)


def _unpack_balanced(raw: Bytes) -> tuple[Ints, ...]:
    codes = gathered_bits(raw[:, 16:80], 2, 32).view(np.int8)
    return codes * np.int8(2) - np.int8(3), _halves(raw[:, 82:])  # type: ignore[return-value]


def _pack_q3k(codes: Ints, scales: Halves) -> Bytes:
    value = lifted(codes, 4)
    high = spread_bits(value >> 2, 1, 32)
    low = np.full((len(codes), 8), (ONE_OF_SIX_BITS & 15) * 17, np.uint8)  # two multiples a byte
    top = np.full((len(codes), 4), (ONE_OF_SIX_BITS >> 4) * 85, np.uint8)  # four
    return np.concatenate([high, spread_bits(value & 3, 2, 32), low, top, _scale(scales)], axis=1)


def _unpack_q3k(raw: Bytes) -> tuple[Ints, ...]:
    value = gathered_bits(raw[:, 32:96], 2, 32) | gathered_bits(raw[:, :32], 1, 32) << 2
    return value.view(np.int8) - np.int8(4), _halves(raw[:, 108:])  # type: ignore[return-value]


def _pack_q4k(codes: Ints, scales: Halves, zeros: Ints) -> Bytes:
    zero = zeros.view(np.uint8).reshape(-1, 1)
    # the first four multiples and minima in six bits; the low halves of the other four share bytes
    multiples = np.full((len(codes), 4), 1, np.uint8)
    minima, rest = np.repeat(zero, 4, axis=1), np.repeat(1 | zero << 4, 4, axis=1)
    quants = spread_bits(codes.view(np.uint8), 4, 32)
    return np.concatenate([_scale(scales), _scale(scales), multiples, minima, rest, quants], axis=1)


def _unpack_q4k(raw: Bytes) -> tuple[Ints, ...]:
    codes = gathered_bits(raw[:, 16:], 4, 32).view(np.int8)
    return codes, _halves(raw[:, :2]), np.ascontiguousarray(raw[:, 8]).view(np.int8)  # type: ignore[return-value]


def _pack_q6k(codes: Ints, scales: Halves) -> Bytes:
    value = lifted(codes, 32)
    low, high = spread_bits(value & 15, 4, 64), spread_bits(value >> 4, 2, 32)
    multiples = np.ones((len(codes), 16), np.uint8)
    return np.concatenate([low, high, multiples, _scale(scales)], axis=1)


def _unpack_q6k(raw: Bytes) -> tuple[Ints, ...]:
    value = gathered_bits(raw[:, :128], 4, 64) | gathered_bits(raw[:, 128:192], 2, 32) << 4
    return value.view(np.int8) - np.int8(32), _halves(raw[:, 208:])  # type: ignore[return-value]


Q2_K = BlockType("Q2_K", 10, 10, 256, 84, 0, 3, _pack_q2k, _unpack_q2k, zeros=15)
Q2_K_BALANCED = BlockType("Q2_K", 10, 10, 256, 84, -3, 3, _pack_balanced, _unpack_balanced, odd=True)
Q3_K = BlockType("Q3_K", 11, 12, 256, 110, -4, 3, _pack_q3k, _unpack_q3k)
Q4_K = BlockType("Q4_K", 12, 15, 256, 144, 0, 15, _pack_q4k, _unpack_q4k, zeros=15)
Q6_K = BlockType("Q6_K", 14, 18, 256, 210, -32, 31, _pack_q6k, _unpack_q6k)
