from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.quant.packing import (
    bytes_of_bits,
    bytes_of_trits,
    pack_bits,
    pack_trits,
    unpack_bits,
    unpack_trits,
)


def numbers(rows: int, count: int, below: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, below, (rows, count), generator=generator, dtype=torch.uint8)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 8), st.integers(0, 5), st.integers(1, 70), st.integers(0, 999))
def test_bits_come_back(bits, rows, count, seed):
    values = numbers(rows, count, 2**bits, seed)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, bytes_of_bits(count, bits))
    assert torch.equal(unpack_bits(packed, bits, count), values)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 5), st.integers(1, 70), st.integers(0, 999))
def test_trits_come_back(rows, count, seed):
    digits = numbers(rows, count, 3, seed)
    packed = pack_trits(digits)
    assert packed.shape == (rows, bytes_of_trits(count)) and (packed.numel() == 0 or packed.max() < 243)
    assert torch.equal(unpack_trits(packed, count), digits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_a_little_endian_bit_string(bits):
    """The documented layout, read with Python's own integers: a stranger can decode the file."""
    values = numbers(1, 16, 2**bits, seed=bits)[0]
    string = sum(int(value) << (index * bits) for index, value in enumerate(values))
    assert bytes(pack_bits(values, bits).tolist()) == string.to_bytes(2 * bits, "little")


def test_layout_of_trits():
    assert pack_trits(torch.tensor([[2, 1, 0, 0, 1, 2]])).tolist() == [[2 + 3 * 1 + 81 * 1, 2]]
    assert pack_trits(torch.full((1, 5), 2)).tolist() == [[242]]


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_strides(bits):
    """Columns of a wider tensor, and a transposed one."""
    values = numbers(6, 24, 2**bits, seed=1)
    packed = pack_bits(values, bits)
    for same in (values.T.contiguous().T, torch.cat([values, values], 1)[:, :24]):
        assert torch.equal(pack_bits(same, bits), packed)
    for same in (packed.T.contiguous().T, torch.cat([packed, packed], 1)[:, : packed.shape[1]]):
        assert torch.equal(unpack_bits(same, bits, 24), values)
    trits = numbers(6, 24, 3, seed=2)
    assert torch.equal(unpack_trits(pack_trits(trits.T.contiguous().T).T.contiguous().T, 24), trits)


def test_every_byte_of_trits_is_read_by_its_digits():
    """Also those above 242, which no row of trits makes."""
    digits = unpack_trits(torch.arange(256, dtype=torch.uint8).unsqueeze(0), 5 * 256).view(256, 5).tolist()
    assert digits == [[byte // 3**place % 3 for place in range(5)] for byte in range(256)]
