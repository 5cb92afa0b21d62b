"""Each format against its published formula, computed another way; and what a bad argument says."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.errors import RazorError
from razor.quant import Float16, Format, Integer, RowMix, Ternary
from razor.quant.rowmix import even_rows

LARGEST_FLOAT16, SMALLEST_FLOAT16 = 65504.0, 2.0**-24


def oracle(x: np.ndarray, raw: np.ndarray, limit: int) -> np.ndarray:
    """One group: fp16 scale, round to even, clip; in float64."""
    scale = np.float64(np.float16(np.clip(np.float32(raw), SMALLEST_FLOAT16, LARGEST_FLOAT16)))
    codes = np.clip(np.rint(np.float32(x) / np.float32(scale)), -limit, limit)
    return np.asarray(codes * scale)


@pytest.mark.parametrize("width", range(2, 9))
def test_integer_follows_its_formula(width):
    x = torch.randn(6, 24) * torch.tensor([1e-3, 1.0, 50.0]).repeat_interleave(8)
    limit = 2 ** (width - 1) - 1
    found = Integer(width, 8).quantize(x).unflatten(-1, (3, 8))
    for row in range(6):
        for index, group in enumerate(x[row].unflatten(-1, (3, 8)).numpy()):
            expected = oracle(group, np.abs(group).max() / np.float32(limit), limit)
            np.testing.assert_allclose(found[row, index].numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.7])
def test_ternary_follows_its_formula(factor):
    x = torch.randn(6, 24)
    found = Ternary(8, factor).quantize(x).unflatten(-1, (3, 8))
    for row in range(6):
        for index, group in enumerate(x[row].unflatten(-1, (3, 8)).numpy()):
            expected = oracle(group, factor * np.abs(group).mean(), 1)
            np.testing.assert_allclose(found[row, index].numpy(), expected, rtol=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(0, 999), st.floats(1e-6, 1e6))
def test_codes_are_symmetric(width, seed, magnitude):
    """int4 has no -8: the scale belongs to the largest magnitude, and the codes are clipped alike."""
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * magnitude
    values = Integer(width, 8).encode(x).values
    limit = 2 ** (width - 1) - 1
    assert values.dtype == torch.int8 and values.abs().max() <= limit
    if 0.5 < magnitude < 1e3:  # where fp16 holds the scale to all its digits
        assert (values.unflatten(-1, (-1, 8)).abs().amax(-1) == limit).all()
    assert set(Ternary(8).encode(x).values.unique().tolist()) <= {-1, 0, 1}


def test_scales_of_the_forward_pass_are_sixteen_bit():
    x = torch.randn(40, 64)
    for format in (Integer(4, 16), Integer(8, 16), Ternary(16)):
        codes = format.encode(x).values.unflatten(-1, (-1, 16)).float()
        used = (format.quantize(x).unflatten(-1, (-1, 16)) / codes).nan_to_num(0).abs().amax(-1)
        assert torch.equal(used, used.half().float())


def test_a_group_of_zeros_stays_zero():
    for format in (Integer(4, 8), Ternary(8), RowMix(Integer(4, 8), Ternary(8), 0.5)):
        assert (format.quantize(torch.zeros(3, 16)) == 0).all()


def test_a_huge_outlier_is_held_at_the_largest_scale():
    x = torch.zeros(1, 8)
    x[0, 0] = 1e30
    assert Integer(4, 8).quantize(x)[0, 0] == 7 * LARGEST_FLOAT16


def test_float16_is_a_rounding():
    x = torch.randn(5, 7)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        format = Float16(name)
        assert torch.equal(format.quantize(x), x.to(dtype).float())
        assert format.encode(x).scales is None and format.bits((5, 7)) == 16 * 35 == 8 * format.packed_bytes(
            (5, 7)
        )
        assert format.encode(torch.zeros(3)).values.shape == (3,)  # norms have one dimension


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 300), st.fractions(0, 1, max_denominator=2000))
def test_rows_are_spread_evenly(rows, fraction):
    chosen = even_rows(rows, float(fraction))
    assert chosen.shape == (rows,) and chosen.dtype == torch.bool
    assert int(chosen.sum()) == -(-rows * fraction.numerator // fraction.denominator)
    where = chosen.nonzero().squeeze(1).tolist()
    assert not where or where[0] == 0
    gaps = {b - a for a, b in pairwise(where)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 400), st.integers(1, 64))
def test_one_in_n_takes_the_rows_of_the_paper(rows, n):
    assert even_rows(rows, 1 / n).nonzero().squeeze(1).tolist() == list(range(0, rows, n))


@pytest.mark.parametrize("fraction", [0.4, 0.6, 0.125, 0.5, 0.9, 1 / 3, 0.0, 1.0])
def test_a_fraction_means_what_it_says(fraction):
    rows = 300
    high, low = Integer(4, 8), Ternary(8)
    mix = RowMix(high, low, fraction)
    x = torch.randn(rows, 16)
    q = mix.quantize(x)
    is_high = (q == high.quantize(x)).all(-1)
    assert int(is_high.sum()) == round(rows * fraction)
    assert torch.equal(is_high, even_rows(rows, fraction))
    assert torch.equal(q[~is_high], low.quantize(x)[~is_high])
    exact = round(Fraction(fraction).limit_denominator(1000) * rows)
    assert mix.code_bits(x.shape) == pytest.approx((4 * exact + 1.58 * (rows - exact)) * 16)


def test_mixed_rows_are_stored_apart():
    mix = RowMix(Integer(4, 8), Ternary(8), 0.25)
    packed = mix.pack(mix.encode(torch.randn(6, 16)))
    assert {name: tuple(t.shape) for name, t in packed.items()} == {
        "high.codes": (2, 8),
        "high.scales": (2, 2),
        "low.codes": (4, 4),
        "low.scales": (4, 2),
    }


@pytest.mark.parametrize(
    ("format", "label"),
    [
        (Ternary(8), "1.58"),
        (Integer(4, 8), "4"),
        (Float16(), "16"),
        (RowMix(Integer(4, 8), Ternary(8), 0.5), "2.79"),
        (RowMix(Integer(4, 8), Ternary(8), 0.125), "1.88"),
        (RowMix(Integer(4, 8), Integer(2, 8), 0.5), "3"),
    ],
)
def test_labels_are_the_names_in_the_paper(format, label):
    assert format.label == label


@pytest.mark.parametrize("group", [0, -8, 2.5, "64", None])
def test_bad_group(group):
    with pytest.raises(RazorError, match=r"group .*positive whole number"):
        Ternary(group)


@pytest.mark.parametrize("width", [0, 1, 9, 16, -4, 4.5])
def test_bad_width(width):
    with pytest.raises(RazorError, match=f"width '{width}'.*2 to 8"):
        Integer(width, 8)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_bad_factor(factor):
    with pytest.raises(RazorError, match=f"factor '{factor}' must be a positive number"):
        Ternary(8, factor)


@pytest.mark.parametrize("fraction", [-0.1, 1.0001, 60, float("nan"), float("inf")])
def test_bad_fraction(fraction):
    with pytest.raises(RazorError, match=f"'{fraction}' must lie in 0..1"):
        RowMix(Integer(4, 8), Ternary(8), fraction)


def test_mixed_formats_need_one_group():
    with pytest.raises(RazorError, match=r"one group, not 16 .high. and 8 .low."):
        RowMix(Integer(4, 16), Ternary(8), 0.5)


def test_bad_float_type():
    with pytest.raises(RazorError, match=r"'float8'.*bfloat16, float16"):
        Float16("float8")


def test_unknown_kind_names_the_choices():
    with pytest.raises(RazorError, match=r"'Ternery'.*Did you mean 'Ternary'.*Integer"):
        Format.from_spec({"kind": "Ternery", "group": 8})
    with pytest.raises(RazorError, match=r"a plan.factory is unknown. Did you mean 'factor'"):
        Format.from_spec({"kind": "Ternary", "group": 8, "factory": 2})
    with pytest.raises(RazorError, match=r"Grouped'? is unknown"):  # abstract
        Format.from_spec({"kind": "Grouped", "group": 8})
    with pytest.raises(RazorError, match="lacks its 'kind'"):
        Format.from_spec({})


def test_the_error_names_the_groups_that_would_divide():
    with pytest.raises(
        RazorError, match=r"Group 256 does not divide the 576 inputs of 'a\.b'.* 64, .*model\.group="
    ):
        Ternary(256).check((4, 576), "a.b")
    with pytest.raises(RazorError, match="7"):
        Ternary(8).check((4, 7), "a")
