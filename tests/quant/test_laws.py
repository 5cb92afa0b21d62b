"""The laws of number formats, held against every format that a shipped option names."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from razor.errors import RazorError
from razor.quant import Format
from tests.quant.conftest import formats_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MEASURED_TRIT, STORED_TRIT = 1.58, 1.6
ROW_PADDING = 7 * 8  # bits: at most seven missing values of eight bits fill up a row

law = settings(deadline=None, max_examples=20)


def content(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """fp32 numbers of one nasty kind."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if kind == "zeros":
        return torch.zeros(shape)
    if kind == "mixed":
        return x * 10 ** (torch.rand(shape, generator=generator) * 12 - 8)
    if kind == "outlier":
        x.view(-1)[seed % x.numel()] = -1e30 if seed % 2 else 6e4
    if kind == "halves":  # right between two codes
        return torch.randint(-14, 15, shape, generator=generator) / 2
    if kind == "constant":
        return torch.full(shape, -0.3)
    return x * {"tiny": 1e-8, "huge": 1e4}.get(kind, 1.0)


KINDS = ("normal", "zeros", "tiny", "huge", "mixed", "outlier", "halves", "constant")
GROUPS = (32, 12, "row", "tensor")  # whole bytes, not whole bytes, and no number at all


@dataclass(frozen=True)
class Case:
    """A matrix to quantize."""

    group: int | str
    rows: int
    columns: int
    kind: str
    seed: int
    dtype: torch.dtype

    def matrix(self) -> Tensor:
        x = content(self.kind, (self.rows, self.columns), self.seed)
        return x.clamp(-torch.finfo(self.dtype).max, torch.finfo(self.dtype).max).to(self.dtype)

    def each(self, option: str) -> Iterator[tuple[Format, Tensor]]:
        """Every format of an option, as described and as bound to this matrix, with the matrix."""
        for format in formats_of(option, self.group):
            yield format, self.matrix()
            if (bound := format.bind(self.matrix()).eval()) is not format:
                yield bound, self.matrix()


@st.composite
def cases(draw: Any) -> Case:
    group = draw(st.sampled_from(GROUPS))
    groups = draw(st.integers(1, 4))
    return Case(
        group,
        draw(st.integers(1, 17)),
        groups * group if isinstance(group, int) else draw(st.integers(1, 70)),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(DTYPES)),
    )


def bits_of(x: Tensor) -> Tensor:
    """Bit patterns; the two zeros count as one."""
    return (x + 0.0).view(torch.int32 if x.element_size() == 4 else torch.int16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits_of(a), bits_of(b))


@law
@given(case=cases(), dtype=st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_what_is_stored_is_what_was_computed_with(option, case, dtype):
    for format, x in case.each(option):
        before = x.clone()
        decoded = format.decode(format.encode(x))
        assert decoded.dtype == torch.float32 and decoded.isfinite().all()
        expected = decoded.to(dtype or x.dtype)
        assert same_bits(format.quantize(x, dtype), expected)
        assert same_bits(format(x, dtype), expected)
        assert same_bits(format(x.requires_grad_(), dtype).detach(), expected)
        assert torch.equal(x, before)  # nothing is done in place


@law
@given(case=cases())
def test_memory_layout_does_not_matter(option, case):
    for format, x in case.each(option):
        turned = x.T.contiguous().T
        if case.group == "tensor" and any(getattr(m, "scale", "") == "mean" for m in format.modules()):
            continue  # a sum over everything may be taken in another order
        assert same_bits(format.quantize(turned), format.quantize(x))
        assert torch.equal(format.encode(turned).values, format.encode(x).values)


@law
@given(case=cases())
def test_packing_loses_nothing_and_takes_the_bytes_it_promised(option, case):
    for format, x in case.each(option):
        codes = format.encode(x)
        packed = format.pack(codes)
        described = Format.from_spec(format.spec())  # who unpacks has the description alone
        back = described.unpack(packed, x.shape)
        assert codes.shape == back.shape == tuple(x.shape)
        for part in ("values", "scales", "zeros", "high"):
            mine, theirs = getattr(codes, part), getattr(back, part)
            assert (mine is None) == (theirs is None)
            assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))
        assert same_bits(described.decode(back), format.decode(codes))
        layout = {name: (tuple(t.shape), t.dtype) for name, t in packed.items()}
        assert layout == described.packed_layout(x.shape)
        assert all(t.is_contiguous() for t in packed.values())
        assert sum(t.numel() * t.element_size() for t in packed.values()) == described.packed_bytes(x.shape)


@law
@given(case=cases())
def test_bits_are_the_bytes_but_for_padding(option, case):
    for format, x in case.each(option):
        code, side = format.code_bits(x.shape), format.side_bits(x.shape)
        assert format.bits(x.shape) == code + side
        stored = 8 * format.packed_bytes(x.shape)
        assert code + side <= stored + 1e-6
        # codes and zero points of a row, and the map of rows, fill up to whole units of eight values
        assert stored <= code * STORED_TRIT / MEASURED_TRIT + side + (2 * case.rows + 1) * ROW_PADDING


def test_without_padding_bits_are_bytes(option):
    for group in (32, "row", "tensor"):
        for format in formats_of(option, group):
            shape = (160, 40 * 32)  # whole units of eight values and of five trits
            code, side = format.code_bits(shape), format.side_bits(shape)
            stored = 8 * format.packed_bytes(shape)
            zero = 8 * 160 * 8 if any(getattr(m, "zero_width", 0) for m in format.modules()) else 0
            assert code + side <= stored + 1e-6
            assert stored <= code * STORED_TRIT / MEASURED_TRIT + side + zero + 1e-6


@law
@given(case=cases(), dtype=st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_gradient_goes_straight_through(option, case, dtype):
    """Of every format that says so; learned scales have a rule and tests of their own."""
    for format, x in case.each(option):
        latent = x.requires_grad_()
        out = format(latent, dtype)
        gradient = torch.randn(out.shape).to(out.dtype)
        out.backward(gradient)
        assert latent.grad is not None and latent.grad.dtype == latent.dtype
        if format.straight_through:
            assert torch.equal(latent.grad, gradient.to(latent.dtype))
        else:
            assert all(p.grad is not None and p.grad.shape == p.shape for p in format.learned())


def test_gradient_reaches_a_clipped_weight(option):
    for group in GROUPS:
        for format in formats_of(option, group):
            latent = torch.zeros(2, group if isinstance(group, int) else 20)
            latent[0, 0] = 1e30
            latent.requires_grad_()
            format(latent).sum().backward()
            assert (latent.grad == 1).all()


def test_tokens_are_quantized_one_by_one(option):
    """Activations and keys: [..., columns]; what another token holds changes nothing."""
    for group in GROUPS:
        for format in formats_of(option, group):
            if not format.per_token:
                continue
            x = torch.randn(2, 3, 5, 2 * group if isinstance(group, int) else 30)
            together = format.quantize(x)
            for token in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
                assert torch.equal(together[tuple(token)], format.quantize(x[tuple(token)]))


@law
@given(case=cases())
def test_spec_builds_the_same_format(option, case):
    for format in formats_of(option, case.group):
        x = case.matrix()
        rebuilt = Format.from_spec(json.loads(json.dumps(format.spec())))
        assert type(rebuilt) is type(format) and rebuilt.spec() == format.spec()
        assert rebuilt.label == format.label
        assert torch.equal(rebuilt.encode(x).values, format.encode(x).values)
        assert same_bits(rebuilt.quantize(x), format.quantize(x))


@law
@given(case=cases())
def test_a_bound_format_survives_copies_and_state_dicts(option, case):
    """deepcopy, and loading into a format that was bound to another weight."""
    for format in formats_of(option, case.group):
        x, other = case.matrix(), replace(case, kind="normal", seed=case.seed + 1).matrix()
        bound, late = format.bind(x).eval(), copy.deepcopy(format).bind(other).eval()
        late.load_state_dict(bound.state_dict())
        assert same_bits(copy.deepcopy(bound).quantize(x), bound.quantize(x))
        assert same_bits(late.quantize(x), bound.quantize(x))
        on_meta = format.bind(x.to("meta"))
        assert all(t.is_meta for t in on_meta.state_dict().values())
        empty = on_meta.to_empty(device="cpu").eval()
        empty.load_state_dict(bound.state_dict())
        assert same_bits(empty.quantize(x), bound.quantize(x))


def test_scales_are_finite_and_positive(option):
    for group in GROUPS:
        for format in formats_of(option, group):
            for kind in KINDS:
                x = content(kind, (5, 2 * group if isinstance(group, int) else 30), seed=1)
                codes = format.encode(x)
                if codes.scales is None:
                    continue
                assert codes.scales.isfinite().all() and (codes.scales > 0).all()
                if codes.zeros is None and not any(getattr(m, "shift", 0) for m in format.modules()):
                    mirrored = format.encode(-x)
                    assert torch.equal(mirrored.values, -codes.values)
                    assert torch.equal(mirrored.scales, codes.scales)


def test_a_row_the_group_does_not_divide_is_refused(option):
    for format in formats_of(option, 12):
        if not any(hasattr(m, "group") for m in format.modules()):
            continue
        with pytest.raises(
            RazorError, match=r"Group 12 .* 40 inputs of 'model\.layer'.*groups that would.*row"
        ):
            format.check((4, 40), "model.layer")
        with pytest.raises(RazorError, match="does not divide"):
            format.encode(torch.zeros(4, 40))
        format.check((4, 36), "model.layer")


def test_repr_names_the_arguments(option):
    for format in formats_of(option, 32):
        for name in format.spec():
            assert name == "kind" or name in repr(format)


def test_labels_are_numbers(option):
    for format in formats_of(option, 32):
        assert math.isfinite(float(format.label))
