"""Codes of any group-wise format as plain integers, the way other people's kernels read them.

Runtimes know one sentence: `w = (q - z) * s`, with `q` and `z` in four or eight bits and a 16-bit `s` for each
group of inputs. Most of Razor's formats say the same in other words, and can be rewritten without touching a
single value:

    int4, int3, int2, ternary   q = code, z = 0
    half-step levels (seq_2)    (code + 1/2) * s = (2 code + 1) * s / 2: odd q, half of the scale
    asymmetric, 2 and 3 bits    q = code - zero, which lies within -7..7; z = 0
    asymmetric, 4 bits          q = code - 8, z = zero - 8

A scale that more inputs share than a kernel allows is repeated: 256 of them in groups of 128 have the same scale
twice. Rows of two formats are rewritten row by row. Everything here is exact, and exporters check that it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.compressed import Compressed, Weight
from razor.export.hf_folder import Skeleton, dtype_name
from razor.quant import Codes, Format, Grouped, Plan, RowMix
from razor.quant.rowmix import even_rows

GROUPS = (128, 64, 32)
"""Group sizes that kernels of GPTQ and vLLM have."""


@dataclass(frozen=True)
class Integers:
    """A weight as `(values - zeros) * scales`.

    Attributes:
        values: int8 [rows, columns]; -8..7 where four bits are enough.
        scales: 16-bit floats [rows, groups].
        zeros: int8 [rows, groups], -8..7; None: all of them are zero.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None

    def grouped(self, group: int) -> Integers:
        """The same with scales (and zeros) repeated for smaller groups, which must divide the present ones."""
        times = self.values.shape[1] // (self.scales.shape[1] * group)
        zeros = None if self.zeros is None else self.zeros.repeat_interleave(times, 1)
        return Integers(self.values, self.scales.repeat_interleave(times, 1), zeros)

    def folded(self) -> Integers:
        """The same without zero points; values then lie within -15..15."""
        if self.zeros is None:
            return self
        times = self.values.shape[1] // self.scales.shape[1]
        return Integers(self.values - self.zeros.repeat_interleave(times, 1), self.scales, None)

    def decoded(self) -> Tensor:
        """What they stand for, fp32 [rows, columns]."""
        own = self.folded()
        times = own.values.shape[1] // own.scales.shape[1]
        return own.values.float() * own.scales.float().repeat_interleave(times, 1)


@dataclass(frozen=True)
class Span:
    """How far the integers of a format reach, known without a weight.

    Attributes:
        lowest: of the values.
        highest: of the values.
        zeros: whether zero points are needed beside them.
    """

    lowest: int
    highest: int
    zeros: bool = False

    @property
    def bits(self) -> int:
        """Bits of a kernel that holds them, 4 or 8."""
        return 4 if self.lowest >= -8 and self.highest <= 7 else 8


def span(format: Format) -> Span | None:
    """The reach of a format's integers; None: it has none (16 bits)."""
    if isinstance(format, RowMix):
        high, low = span(format.high), span(format.low)
        assert high is not None and low is not None  # RowMix takes group-wise formats alone
        lowest, highest = min(high.lowest, low.lowest), max(high.highest, low.highest)
        return Span(lowest, highest, high.zeros or low.zeros)
    if not isinstance(format, Grouped):
        return None
    if format.zero_width:
        short = format.highest <= 7
        return Span(-format.highest, format.highest) if short else Span(-8, 7, True)
    if format.shift:
        return Span(2 * format.lowest + 1, 2 * format.highest + 1)
    return Span(format.lowest, format.highest)


def shared_inputs(format: Format, columns: int) -> int:
    """How many inputs of a row of so many columns share a scale."""
    group = format.high.group if isinstance(format, RowMix) else getattr(format, "group", columns)
    return group if isinstance(group, int) else columns


def integers(format: Format, codes: Codes) -> Integers:
    """Rewrite codes [rows, columns] of a group-wise format, or of two mixed by rows, as integers.

    Raises:
        RazorError: half of a scale is not a 16-bit number.
    """
    assert codes.scales is not None
    rows = codes.shape[0]
    every = torch.ones(rows, dtype=torch.bool)
    parts: list[tuple[Format, Tensor]] = [(format, every)]
    if isinstance(format, RowMix):
        high = even_rows(rows, format.fraction) if codes.high is None else codes.high
        parts = [(format.high, high), (format.low, ~high)]
    values, scales = codes.values.clone(), codes.scales.expand(rows, -1).clone()
    zeros = torch.zeros_like(scales, dtype=torch.int8)
    for part, mine in parts:
        assert isinstance(part, Grouped)
        if part.zero_width:
            assert codes.zeros is not None
            own = codes.zeros.expand(rows, -1)[mine]
            if part.highest <= 7:
                values[mine] -= own.repeat_interleave(values.shape[1] // own.shape[1], 1)
            else:
                values[mine], zeros[mine] = values[mine] - 8, own - 8
        elif part.shift:
            values[mine] = 2 * values[mine] + 1
            scales[mine] = _halved(scales[mine])
    return Integers(values, scales, zeros if zeros.any() else None)


def _halved(scales: Tensor) -> Tensor:
    half = scales / 2
    if not torch.equal(half * 2, scales):
        raise RazorError(
            "A scale is so small that half of it is no 16-bit number: levels between the integers need that here. "
            "Choose another format, or export=[packed] or [dense]."
        )
    return half


def scales_as(scales: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Scales in another 16-bit type.

    Raises:
        RazorError: one of them, of weight `name`, would be rounded.
    """
    changed = scales.to(dtype)
    if not torch.equal(changed.float(), scales.float()):
        wanted, own = dtype_name(dtype), dtype_name(scales.dtype)
        raise RazorError(
            f"'{name}' has {own} scales that {wanted}, which this format stores, cannot hold exactly: train with "
            f"scale_dtype: {wanted}, or export=[packed] or [dense]."
        )
    return changed


def check_spans(format: str, plan: Plan, skeleton: Skeleton, bare: bool) -> dict[str, Span]:
    """The spans of all decoder linears by name, if the plan has nothing else beside embedding and head.

    Args:
        format: name of the exporter.
        plan: of the model.
        skeleton: of the model.
        bare: whether the format can leave linear layers in 16 bits.

    Raises:
        RazorError: names the first weights that do not fit, how many, and what would do.
    """
    spans, unfit = {}, []
    for name, place in plan.modules.items():
        found = span(place.weights)
        if name in skeleton.ends:
            continue
        if name not in skeleton.linear:
            unfit.append(f"'{name}' (no linear layer)")
        elif found is not None:
            spans[name] = found
        elif not bare:
            unfit.append(f"'{name}' (16 bits)")
    if not unfit and not spans:
        unfit.append("16 bits everywhere")
    if unfit:
        first = ", ".join(unfit[:3]) + (f" and {len(unfit) - 3} more" if len(unfit) > 3 else "")
        raise RazorError(
            f"export={format} holds the linear layers of a decoder in group-wise formats (quant=w4, w3, w2, w1p58, "
            f"mixed_2p79, mixed_1p88, ...), not {first}. export=[packed,dense] hold every plan."
        )
    return spans


def matrices(compressed: Compressed, skeleton: Skeleton) -> Iterator[Weight]:
    """The weights of the decoder's linear layers."""
    for weight in compressed.weights():
        if weight.name in skeleton.linear:
            yield weight
