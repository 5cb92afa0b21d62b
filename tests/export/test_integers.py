"""Codes of every format as integers times a scale: the same numbers, within the promised reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.errors import RazorError
from razor.export.integers import Integers, integers, scales_as, shared_inputs, span
from razor.quant import (
    Affine,
    Float16,
    Format,
    Grouped,
    Integer,
    LearnedScale,
    RowMix,
    StretchedElastic,
    Ternary,
)

FORMATS: dict[str, Format] = {
    "int4": Integer(4, 32),
    "int2": Integer(2, 32),
    "int8": Integer(8, "row"),
    "one scale": Integer(3, "tensor"),
    "ternary": Ternary(32),
    "bf16 scales": Ternary(32, scale_dtype="bfloat16"),
    "half steps": StretchedElastic(4, 32),
    "three levels": StretchedElastic(3, 32),
    "affine2": Affine(2, 32),
    "affine3": Affine(3, "row"),
    "affine4": Affine(4, 32),
    "learned": LearnedScale(StretchedElastic(4, 32)),
    "mixed": RowMix(Integer(4, 32), Ternary(32), 0.3),
    "mixed by error": RowMix(Integer(4, 32), StretchedElastic(4, 32), 0.3, "error"),
    "mixed with zeros": RowMix(Affine(4, 32), Affine(2, 32), 0.5),
    "mixed, one with zeros": RowMix(Affine(4, "row"), Ternary("row"), 0.5),
}
FOUR = set(FORMATS) - {"int8"}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([1e-3, 1.0, 100.0]), lean=st.floats(-1, 1))
def test_stand_for_the_same_numbers(name: str, seed: int, size: float, lean: float) -> None:
    weight = size * (torch.randn(10, 96, generator=torch.Generator().manual_seed(seed)) + lean)
    format = FORMATS[name].bind(weight)
    codes = format.encode(weight)
    found, reach = integers(format, codes), span(format)
    assert reach is not None and reach.bits == (4 if name in FOUR else 8)
    assert torch.equal(found.decoded(), format.decode(codes))
    assert torch.equal(found.grouped(32).decoded(), format.decode(codes))
    assert found.grouped(32).scales.shape == (10, 3)
    assert reach.lowest <= int(found.values.min()) and int(found.values.max()) <= reach.highest
    assert reach.zeros or found.zeros is None
    assert found.zeros is None or (int(found.zeros.min()) >= -8 and int(found.zeros.max()) <= 7)


def test_the_codes_they_came_from_are_left_alone() -> None:
    weight = torch.randn(4, 32)
    for format in (Affine(4, 32), StretchedElastic(4, 32)):
        codes = format.encode(weight)
        before = codes.values.clone(), codes.scales.clone()
        integers(format, codes)
        assert torch.equal(codes.values, before[0]) and torch.equal(codes.scales, before[1])


def test_sixteen_bits_have_none() -> None:
    assert span(Float16()) is None


@pytest.mark.parametrize(
    ("format", "inputs"),
    [(Integer(4, 32), 32), (Integer(4, "row"), 96), (RowMix(Integer(4, 48), Ternary(48), 0.5), 48)],
)
def test_inputs_that_share_a_scale(format: Format, inputs: int) -> None:
    assert shared_inputs(format, 96) == inputs


def test_half_of_a_scale_must_be_a_number() -> None:
    format = StretchedElastic(4, 32)
    with pytest.raises(RazorError, match="half of it"):
        integers(format, format.encode(torch.zeros(1, 32)))  # the smallest positive scale


@pytest.mark.parametrize("scale", [2.0**-20 * 1.0078125, 2.0**17])
def test_scales_that_would_be_rounded_are_refused(scale: float) -> None:
    scales = torch.tensor([[1.5, scale]], dtype=torch.bfloat16)
    with pytest.raises(RazorError, match=r"'a\.b' has bfloat16 scales that float16"):
        scales_as(scales, torch.float16, "a.b")
    assert torch.equal(scales_as(scales[:, :1], torch.float16, "a.b"), torch.tensor([[1.5]]).half())


def test_a_group_format_is_needed_for_every_part() -> None:
    assert isinstance(FORMATS["int4"], Grouped)
    three = Integers(torch.ones(1, 8, dtype=torch.int8), torch.tensor([[2.0, 3.0]]), torch.tensor([[1, 0]]))
    assert three.decoded().tolist() == [[0.0] * 4 + [3.0] * 4]
