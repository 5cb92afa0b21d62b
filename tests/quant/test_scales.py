"""How scales are found: least squares against brute force, and the other rules against their formulas."""

from __future__ import annotations

import pytest
import torch

from razor.quant import Integer, StretchedElastic, Ternary


def test_least_squares_ternary_is_the_best_of_all():
    """Against every scale on a fine grid."""
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    best = torch.full((20,), torch.inf)
    for scale in torch.linspace(0.05, 4, 800).tolist():
        error = (x - (x / scale).round().clamp(-1, 1) * scale).square().sum(-1)
        best = torch.minimum(best, error)
    ours = (Ternary(16, scale="mse").quantize(x) - x).square().sum(-1)
    assert (ours <= best * 1.0005).all() and (ours >= best * 0.98).all()


def test_the_level_of_a_gaussian_is_1_22_sigma():
    x = torch.randn(4, 1 << 16, generator=torch.Generator().manual_seed(1))
    assert Ternary("row", scale="mse").encode(x).scales.float().mean() == pytest.approx(1.224, abs=0.01)
    assert Ternary("row").encode(x).scales.float().mean() == pytest.approx(1.596, abs=0.01)
    assert Ternary("row", 1.0).encode(x).scales.float().mean() == pytest.approx(0.798, abs=0.01)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 8])
def test_searched_integer_scales_lose_no_more(width):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(width))
    ours, theirs = (
        (Integer(width, 64, scale).quantize(x) - x).square().sum(-1) for scale in ("mse", "absmax")
    )
    assert (ours <= theirs).all()
    if width <= 4:
        assert ours.sum() < 0.9 * theirs.sum()


@pytest.mark.parametrize("levels", [3, 4])
def test_searched_elastic_scales_lose_no_more(levels):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(levels))
    ours, theirs = (
        (StretchedElastic(levels, 64, scale).quantize(x) - x).square().sum(-1) for scale in ("mse", "absmax")
    )
    assert (ours <= theirs).all() and ours.sum() < 0.8 * theirs.sum()


def test_the_mean_rule_is_where_lsq_starts():
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(9))
    expected = 2 * x.abs().mean(-1, keepdim=True) / 7**0.5
    torch.testing.assert_close(Integer(4, 32, "mean").encode(x).scales.float(), expected, rtol=1e-3, atol=0)


def test_row_and_tensor_scales_are_groups_as_large_as_that():
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))
    assert torch.equal(Integer(4, "row").quantize(x), Integer(4, 32).quantize(x))
    flat = Integer(4, 6 * 32).quantize(x.reshape(1, -1)).reshape(6, 32)
    assert torch.equal(Integer(4, "tensor").quantize(x), flat)
    assert Integer(4, "tensor").encode(x).scales.shape == (1, 1)
    assert Integer(4, "tensor").side_bits(x.shape) == 16 and Integer(4, "row").side_bits(x.shape) == 6 * 16
