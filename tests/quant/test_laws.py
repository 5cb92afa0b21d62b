"""The laws of number formats, held against every format that a shipped option names."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from razor.errors import RazorError
from razor.quant import Format

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MEASURED_TRIT, STORED_TRIT = 1.58, 1.6
ROW_PADDING = 7 * 8  # bits: at most seven missing values of eight bits fill up a row

law = settings(deadline=None, max_examples=25)


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


@st.composite
def cases(draw: Any) -> tuple[int, int, str, int, torch.dtype]:
    """(rows, groups in a row, kind of numbers, seed, dtype)."""
    return (
        draw(st.integers(1, 17)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(DTYPES)),
    )


def tensor(format: Format, case: tuple[int, int, str, int, torch.dtype]) -> Tensor:
    rows, groups, kind, seed, dtype = case
    x = content(kind, (rows, groups * group_of(format)), seed)
    return x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


def group_of(format: Format) -> int:
    spec = format.spec()
    return int(spec.get("group") or spec.get("high", {}).get("group") or 1)


def bits_of(x: Tensor) -> Tensor:
    """Bit patterns; the two zeros count as one."""
    return (x + 0.0).view(torch.int32 if x.element_size() == 4 else torch.int16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits_of(a), bits_of(b))


@law
@given(case=cases(), dtype=st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_what_is_stored_is_what_was_computed_with(formats, case, dtype):
    for format in formats:
        x = tensor(format, case)
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
def test_memory_layout_does_not_matter(formats, case):
    for format in formats:
        x = tensor(format, case)
        turned = x.T.contiguous().T
        assert same_bits(format.quantize(turned), format.quantize(x))
        assert torch.equal(format.encode(turned).values, format.encode(x).values)


@law
@given(case=cases())
def test_packing_loses_nothing_and_takes_the_bytes_it_promised(formats, case):
    for format in formats:
        x = tensor(format, case)
        codes = format.encode(x)
        packed = format.pack(codes)
        back = format.unpack(packed, x.shape)
        assert codes.shape == back.shape == tuple(x.shape)
        assert back.values.dtype == codes.values.dtype and torch.equal(back.values, codes.values)
        if codes.scales is not None:
            assert back.scales is not None and codes.scales.dtype == torch.float16
            assert torch.equal(back.scales, codes.scales)
        layout = {name: (tuple(t.shape), t.dtype) for name, t in packed.items()}
        assert layout == format.packed_layout(x.shape)
        assert all(t.is_contiguous() for t in packed.values())
        assert sum(t.numel() * t.element_size() for t in packed.values()) == format.packed_bytes(x.shape)


@law
@given(rows=st.integers(1, 17), groups=st.integers(1, 9))
def test_bits_are_the_bytes_but_for_padding(formats, rows, groups):
    for format in formats:
        shape = (rows, groups * group_of(format))
        code, scale = format.code_bits(shape), format.scale_bits(shape)
        assert format.bits(shape) == code + scale
        stored = 8 * format.packed_bytes(shape)
        assert code + scale <= stored + 1e-6
        assert stored <= code * STORED_TRIT / MEASURED_TRIT + scale + rows * ROW_PADDING


def test_without_padding_bits_are_bytes(formats):
    for format in formats:
        shape = (8, 40 * group_of(format))  # whole units of eight values and of five trits
        code, scale = format.code_bits(shape), format.scale_bits(shape)
        stored = 8 * format.packed_bytes(shape)
        assert code + scale <= stored + 1e-6 and stored <= code * STORED_TRIT / MEASURED_TRIT + scale + 1e-6


@law
@given(case=cases(), dtype=st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_gradient_goes_straight_through(formats, case, dtype):
    for format in formats:
        latent = tensor(format, case).requires_grad_()
        out = format(latent, dtype)
        gradient = torch.randn(out.shape).to(out.dtype)
        out.backward(gradient)
        assert latent.grad is not None and latent.grad.dtype == latent.dtype
        assert torch.equal(latent.grad, gradient.to(latent.dtype))


def test_gradient_reaches_a_clipped_weight(formats):
    for format in formats:
        latent = torch.zeros(2, group_of(format))
        latent[0, 0] = 1e30
        latent.requires_grad_()
        format(latent).sum().backward()
        assert (latent.grad == 1).all()


def test_tokens_are_quantized_one_by_one(formats):
    """Activations and keys: [..., columns]; what another token holds changes nothing."""
    for format in formats:
        if format.spec()["kind"] == "RowMix":  # weights only
            continue
        x = torch.randn(2, 3, 5, 2 * group_of(format))
        together = format.quantize(x)
        for token in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
            assert torch.equal(together[tuple(token)], format.quantize(x[tuple(token)]))


@law
@given(case=cases())
def test_spec_builds_the_same_format(formats, case):
    for format in formats:
        rebuilt = Format.from_spec(json.loads(json.dumps(format.spec())))
        assert type(rebuilt) is type(format) and rebuilt.spec() == format.spec()
        assert rebuilt.label == format.label
        x = tensor(format, case)
        assert torch.equal(rebuilt.encode(x).values, format.encode(x).values)
        assert same_bits(rebuilt.quantize(x), format.quantize(x))


def test_scales_are_finite_positive_and_symmetric(formats):
    for format in formats:
        for kind in KINDS:
            codes = format.encode(content(kind, (5, 2 * group_of(format)), seed=1))
            if codes.scales is None:
                continue
            assert codes.scales.isfinite().all() and (codes.scales > 0).all()
            mirrored = format.encode(-content(kind, (5, 2 * group_of(format)), seed=1))
            assert torch.equal(mirrored.values, -codes.values)
            assert torch.equal(mirrored.scales, codes.scales)


def test_a_row_the_group_does_not_divide_is_refused(formats):
    for format in formats:
        if (group := group_of(format)) == 1:
            continue
        columns = 3 * group + 4
        with pytest.raises(
            RazorError, match=rf"Group {group} .* {columns} inputs of 'model\.layer'.*groups that would"
        ):
            format.check((4, columns), "model.layer")
        with pytest.raises(RazorError, match="does not divide"):
            format.encode(torch.zeros(4, columns))
        format.check((4, 3 * group), "model.layer")


def test_repr_names_the_arguments(formats):
    for format in formats:
        for name in format.spec():
            assert name == "kind" or name in repr(format)


def test_labels_are_numbers(formats):
    for format in formats:
        assert math.isfinite(float(format.label))
