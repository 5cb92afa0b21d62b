"""How much of the logits exists at a time.

Two sizes matter. Matrix products want many tokens, so logits are made for a whole *chunk*, in the compute
dtype. The formulas read and write memory a dozen times, in fp32, so they work on *blocks* of a few tokens that
stay in the processor's cache. In fp32 neither size changes a result by more than the order of a sum; in 16 bits
also by how often a weight's gradient is rounded, and by which tokens are asked whether rounding is felt.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK_LOGITS = {"cpu": 24 * 2**20}
"""How many logits make one chunk by device type; one to three of this size exist at a time."""

CHUNK_LOGITS_ELSEWHERE = 256 * 2**20
"""The same where matrix products want to be larger."""

BLOCK_BYTES = {"cpu": 4 * 2**20}
"""Target size of one fp32 block by device type; about six exist at a time."""

BLOCK_BYTES_ELSEWHERE = 256 * 2**20
"""The same where there is no cache to stay in."""

KEPT_BYTES = 128 * 2**20
"""The teacher's logits of a micro-batch are kept between two uses, not made twice, if they are no larger; and
so much of the logits' 16-bit gradients is collected before it is multiplied."""

SLICE_BYTES = 32 * 2**20
"""Target size of the piece of a head's weight gradient that is made at a time."""


def pieces(rows: int, row_bytes: int, target: int) -> Iterator[slice]:
    """Slices of rows of `row_bytes` each, of about one size, within `target` bytes (at least one row each)."""
    most = max(1, target // max(1, row_bytes))
    size = max(1, -(-rows // max(1, -(-rows // most))))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def chunk_bytes(device: str, element_size: int) -> int:
    """Target size of a chunk of logits of `element_size` bytes each, on a type of device."""
    return element_size * CHUNK_LOGITS.get(device, CHUNK_LOGITS_ELSEWHERE)


def blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of a chunk of logits [n, vocabulary] that the formulas work on."""
    size = BLOCK_BYTES.get(logits.device.type, BLOCK_BYTES_ELSEWHERE)
    return pieces(len(logits), 4 * logits.shape[-1], size)
