"""How the codes of a format are written: some bits each, or five ternary digits in a byte.

A `Codeword` knows how a row of int8 codes becomes bytes and back, and what a code costs in the paper's
accounting. A format has one, chosen when it is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from razor.quant.packing import (
    bytes_of_bits,
    bytes_of_trits,
    pack_bits,
    pack_trits,
    unpack_bits,
    unpack_trits,
)

TRIT_BITS = 1.58
"""Bits of a trit by the paper's accounting; log2(3) = 1.585, stored at 1.6."""


class Codeword(ABC):
    """How one code is written."""

    bits: float
    """Bits of a code by the paper's accounting."""

    @abstractmethod
    def pack(self, codes: Tensor) -> Tensor:
        """int8 [rows, columns] -> uint8 [rows, bytes per row]."""

    @abstractmethod
    def unpack(self, packed: Tensor, columns: int) -> Tensor:
        """Inverse of `pack`."""

    @abstractmethod
    def bytes_per_row(self, columns: int) -> int:
        """Bytes that a row takes, padding included."""


@dataclass(frozen=True)
class Bits(Codeword):
    """Codes of `width` bits, stored as code + `offset`."""

    width: int
    offset: int

    @property
    def bits(self) -> float:  # type: ignore[override]  # noqa: D102 - see Codeword
        return float(self.width)

    def pack(self, codes: Tensor) -> Tensor:  # noqa: D102
        return pack_bits(codes.view(torch.uint8) + self.offset, self.width)  # modulo 256

    def unpack(self, packed: Tensor, columns: int) -> Tensor:  # noqa: D102
        return (unpack_bits(packed, self.width, columns) - self.offset).view(torch.int8)

    def bytes_per_row(self, columns: int) -> int:  # noqa: D102
        return bytes_of_bits(columns, self.width)


@dataclass(frozen=True)
class Trits(Codeword):
    """Codes -1, 0, 1, five in a byte (1.6 bits each)."""

    bits = TRIT_BITS

    def pack(self, codes: Tensor) -> Tensor:  # noqa: D102 - see Codeword
        return pack_trits(codes + 1)

    def unpack(self, packed: Tensor, columns: int) -> Tensor:  # noqa: D102
        return unpack_trits(packed, columns).char() - 1

    def bytes_per_row(self, columns: int) -> int:  # noqa: D102
        return bytes_of_trits(columns)
