"""A budget: how large a plan may be, in one of four units.

`code_bits` counts codes alone, a trit as 1.58 bits, averaged over the decoder's linear weights: the paper's nominal
width (2.79, 1.88). The other units count everything that is stored, scales, zero points, maps of rows, embeddings
and norms: `bpw` is bits per weight of the whole model and `ratio` 16 divided by that, both by the paper's
accounting (arXiv 2605.04062); `MB` is 10^6 bytes of the packed tensors.

A unit decides which figure of a matrix adds up (`cost`) and how much of it the matrices to be decided may take
together (`limit`), once what is settled has had its part.
"""

from __future__ import annotations

from dataclasses import dataclass

from razor.errors import RazorError, did_you_mean
from razor.quant import ModelSize, Size
from razor.spec import read

UNITS = {
    "code_bits": "code bits",
    "bpw": "bits per weight",
    "MB": "MB",
    "ratio": "times smaller than 16 bits",
}
"""Units, and how sentences say them."""

ROOM = 1e-9
"""Part of a limit by which a sum of costs may pass it: sums of 1.58 are not exact."""


@dataclass(frozen=True)
class Budget:
    """So much, in a unit.

    Attributes:
        amount: how much; of a ratio, how many times smaller at least.
        unit: a key of `UNITS`.

    Raises:
        RazorError: no number above 0, or an unknown unit.
    """

    amount: float
    unit: str = "code_bits"

    def __post_init__(self) -> None:
        if not 0 < read(float, self.amount, "budget") < float("inf"):
            raise RazorError(f"budget={self.amount} must be a number above 0.")
        if self.unit not in UNITS:
            raise RazorError(f"unit={self.unit}.{did_you_mean(str(self.unit), UNITS)}")

    def __str__(self) -> str:
        return self.said(self.amount)

    def said(self, amount: float) -> str:
        """An amount of this unit in words."""
        return f"{amount:.5g} {UNITS[self.unit]}"

    def cost(self, size: Size) -> float:
        """What a matrix of this size adds: bits, or bytes."""
        if self.unit == "code_bits":
            return size.code_bits
        return float(size.bytes_disk) if self.unit == "MB" else size.bits

    def limit(self, settled: ModelSize, undecided: int) -> float:
        """What the matrices to be decided may cost together.

        Args:
            settled: size of all others; of those to be decided nothing.
            undecided: their number of weights.
        """
        if self.unit == "code_bits":
            weights = settled.linear.parameters + undecided
            return self.amount * weights - settled.linear.code_bits
        if self.unit == "MB":
            return self.amount * 1e6 - settled.total.bytes_disk
        bits = self.amount if self.unit == "bpw" else 16 / self.amount
        return bits * (settled.total.parameters + undecided) - settled.total.bits

    def reached(self, settled: ModelSize, undecided: int, cost: float) -> float:
        """The amount of a model whose undecided matrices cost this much; inverse of `limit`."""
        if self.unit == "code_bits":
            return (settled.linear.code_bits + cost) / (settled.linear.parameters + undecided)
        if self.unit == "MB":
            return (settled.total.bytes_disk + cost) / 1e6
        bits = (settled.total.bits + cost) / (settled.total.parameters + undecided)
        return bits if self.unit == "bpw" else 16 / bits
