"""Block types, against ggml's layouts as the gguf package and llama.cpp read them."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.errors import RazorError
from razor.export.gguf.blocks import Q2_0, Q4_0, Q5_0, Q8_0, TQ1_0, TQ2_0, BlockType
from razor.export.gguf.super_blocks import Q2_K, Q2_K_BALANCED, Q3_K, Q4_K, Q6_K

TYPES = [TQ1_0, TQ2_0, Q2_0, Q2_K, Q2_K_BALANCED, Q3_K, Q4_0, Q4_K, Q5_0, Q6_K, Q8_0]
KNOWN = [kind for kind in TYPES if kind is not Q2_0]


def blocks(kind: BlockType, seed: int, count: int = 20) -> list[np.ndarray]:
    """Codes and scales (and zero points) of blocks: any code, any positive scale of fp16 whose double is one."""
    random = np.random.default_rng(seed)
    codes = random.integers(kind.lowest, kind.highest + 1, (count, kind.size)).astype(np.int8)
    if kind.odd:
        codes = (2 * random.integers(0, 4, codes.shape) - 3).astype(np.int8)
    scales = random.integers(1, 0x7800, count).astype(np.uint16).view(np.float16)
    zeros = random.integers(0, kind.zeros + 1, count).astype(np.int8)
    return [codes, scales, zeros] if kind.zeros else [codes, scales]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=10)  # a busy machine is slow now and then
@given(seed=st.integers(0, 2**32 - 1))
def test_unpacked_is_what_was_packed(kind: BlockType, seed: int) -> None:
    given = blocks(kind, seed)
    raw = kind.pack(*given)
    assert raw.dtype == np.uint8 and raw.shape == (len(given[0]), kind.bytes)
    for before, after in zip(given, kind.unpack(raw), strict=True):
        assert before.dtype == after.dtype and np.array_equal(before.view(np.uint8), after.view(np.uint8))


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=10)  # a busy machine is slow now and then
@given(seed=st.integers(0, 2**32 - 1))
def test_ggml_reads_the_same_numbers(kind: BlockType, seed: int) -> None:
    codes, scales, *zeros = blocks(kind, seed)
    number = GGMLQuantizationType(kind.number)
    assert number.name == kind.name and GGML_QUANT_SIZES[number] == (kind.size, kind.bytes)
    shift = zeros[0][:, None] if zeros else 0
    expected = (codes.astype(np.float32) - shift) * scales.astype(np.float32)[:, None]
    assert np.array_equal(dequantize(kind.pack(codes, scales, *zeros), number), expected)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_llama_cpp_reads_the_same_numbers(kind: BlockType) -> None:
    pytest.importorskip("xllamacpp")
    from razor.models.llama_library import block_size, decode_row

    assert block_size(kind.number, kind.decoder) == (kind.size, kind.bytes)
    codes, scales, *zeros = blocks(kind, 3)
    read = decode_row(kind.decoder, kind.pack(codes, scales, *zeros), codes.size)
    shift = zeros[0][:, None] if zeros else 0
    assert np.array_equal(
        read.reshape(codes.shape), (codes.astype(np.float32) - shift) * scales.astype(np.float32)[:, None]
    )


def test_a_type_that_nobody_knows() -> None:
    pytest.importorskip("xllamacpp")
    from razor.models.llama_library import block_size, decode_row

    assert block_size(1000, "dequantize_row_q9_9") == (0, 0)
    with pytest.raises(RazorError, match="lacks dequantize_row_q9_9"):
        decode_row("dequantize_row_q9_9", np.zeros((1, 18), np.uint8), 32)
