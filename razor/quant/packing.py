"""Bits into bytes.

Two layouts, both row by row so that a row can be read without its neighbours:

* `pack_bits`: `b`-bit unsigned integers as one little-endian bit string, eight values in `b` bytes.
* `pack_trits`: five ternary digits in a byte (3^5 = 243 <= 256, so 1.6 bits a trit where log2(3) = 1.585 is
  the limit), first digit in the lowest place.

A row is padded with zeros up to a whole unit (8 values, 5 trits). Where nothing changes (8 bits, no padding) the
result may be the tensor that was given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TRITS_PER_BYTE = 5


def _units(values: Tensor, unit: int) -> Tensor:
    """[..., n] -> [..., ceil(n / unit), unit], padded with zeros."""
    return F.pad(values, (0, -values.shape[-1] % unit)).unflatten(-1, (-1, unit))


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Unsigned integers below 2**bits, uint8 [..., n] -> uint8 [..., ceil(n / 8) * bits]; bits in 1..8."""
    units = _units(values, 8)
    if 8 % bits == 0 and units.numel():  # an empty tensor may have strides that no view accepts
        return _folded(units.flatten(-2), bits)
    packed = units.new_zeros((*units.shape[:-1], bits))
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        packed[..., byte] |= units[..., index] << shift
        if shift + bits > 8:  # the value straddles two bytes
            packed[..., byte + 1] |= units[..., index] >> (8 - shift)
    return packed.flatten(-2)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack_bits`: uint8 [..., bytes] -> uint8 [..., count]."""
    if 8 % bits == 0 and packed.numel():
        return _unfolded(packed, bits)[..., :count]
    units = packed.unflatten(-1, (-1, bits))
    values = units.new_empty((*units.shape[:-1], 8))
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        value = units[..., byte] >> shift
        if shift + bits > 8:
            value = value | (units[..., byte + 1] << (8 - shift))
        values[..., index] = value & (2**bits - 1)
    return values.flatten(-2)[..., :count]


def _folded(values: Tensor, bits: int) -> Tensor:
    """`pack_bits` for 1, 2, 4 and 8 bits: neighbours fold into one byte until they are full; much faster."""
    values = values.contiguous()
    while bits < 8:
        pairs = values.view(torch.int16)  # little-endian: the second of two bytes is the upper one
        values = (pairs | (pairs >> (8 - bits))).to(torch.uint8)
        bits *= 2
    return values


def _unfolded(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `_folded`."""
    held, values = 8, packed.contiguous()
    while held > bits:
        held //= 2
        pairs = values.to(torch.int16)
        pairs = (pairs | (pairs << (8 - held))) & (0x0101 * (2**held - 1))
        values = pairs.view(torch.uint8)
    return values


def bytes_of_bits(count: int, bits: int) -> int:
    """Bytes that `pack_bits` takes for `count` values."""
    return -(-count // 8) * bits


def pack_trits(digits: Tensor) -> Tensor:
    """Digits 0, 1, 2: [..., n] -> uint8 [..., ceil(n / 5)]."""
    units = _units(digits.to(torch.uint8), TRITS_PER_BYTE)
    packed = units[..., TRITS_PER_BYTE - 1]
    for place in reversed(range(TRITS_PER_BYTE - 1)):
        packed = packed * 3 + units[..., place]
    return packed


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Inverse of `pack_trits`: uint8 [..., bytes] -> uint8 [..., count]."""
    byte = torch.arange(256, dtype=torch.int32, device=packed.device)
    digits = torch.stack([byte // 3**place % 3 for place in range(TRITS_PER_BYTE)], -1).to(torch.uint8)
    values = digits.index_select(0, packed.flatten().int())  # looking digits up is faster than dividing
    return values.view(*packed.shape[:-1], packed.shape[-1] * TRITS_PER_BYTE)[..., :count]


def bytes_of_trits(count: int) -> int:
    """Bytes that `pack_trits` takes for `count` digits."""
    return -(-count // TRITS_PER_BYTE)
