"""Asymmetric integers against the textbook formula, and where they beat symmetric ones."""

from __future__ import annotations

import pytest
import torch

from razor.errors import RazorError
from razor.quant import Affine, Integer


def by_hand(group: list[float], width: int) -> list[float]:
    """x -> (code - zero) * s, number by number."""
    low, high = min(0.0, *group), max(0.0, *group)
    scale = float(torch.tensor((high - low) / (2**width - 1)).half())
    zero = round(-low / scale)
    codes = [min(2**width - 1, max(0, round(x / scale) + zero)) for x in group]
    return [(code - zero) * scale for code in codes]


@pytest.mark.parametrize("width", [2, 3, 4])
def test_is_the_formula(width):
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(width)) + 0.7
    expected = torch.tensor([by_hand(row.tolist(), width) for row in x])
    torch.testing.assert_close(Affine(width, 16).quantize(x), expected, rtol=1e-6, atol=1e-6)


def test_zero_stays_zero_and_codes_fill_the_range():
    x = torch.rand(64, 32, generator=torch.Generator().manual_seed(0)) * 3 + 0.5
    x[:, 5] = 0
    format = Affine(3, 32)
    codes = format.encode(x)
    assert (format.decode(codes)[:, 5] == 0).all()
    assert codes.values.min() == 0 and codes.values.max() == 7
    assert (codes.zeros == 0).all()  # nothing below zero, so zero is the lowest code


def test_leaning_weights_lose_less_than_with_symmetric_codes():
    x = torch.rand(256, 64, generator=torch.Generator().manual_seed(1)) + 0.2
    errors = [(f.quantize(x) - x).square().mean() for f in (Affine(3, 64), Integer(3, 64))]
    assert errors[0] < 0.4 * errors[1]


@pytest.mark.parametrize("width", [2, 3, 4])
def test_searched_scales_lose_no_more(width):
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(2))
    searched, plain = Affine(width, 64, scale="mse"), Affine(width, 64)
    ours, theirs = ((f.quantize(x) - x).square().unflatten(-1, (-1, 64)).sum(-1) for f in (searched, plain))
    assert (ours <= theirs).all() and ours.sum() < 0.95 * theirs.sum()


def test_choices_are_said():
    with pytest.raises(RazorError, match=r"width '5'.*2 to 4"):
        Affine(5, 8)
    with pytest.raises(RazorError, match=r"'absmax'.*minmax, mse"):
        Affine(4, 8, scale="absmax")
