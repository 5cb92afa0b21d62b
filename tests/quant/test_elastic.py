"""Stretched elastic levels against ParetoQ's formula."""

from __future__ import annotations

import pytest
import torch

from razor.errors import RazorError
from razor.quant import LearnedScale, StretchedElastic


def paretoq(x: torch.Tensor, alpha: torch.Tensor, levels: int) -> torch.Tensor:
    """arXiv 2502.02631: the middle of the bin, with the clip just inside the range."""
    half, shift = levels / 2, 0.0 if levels == 3 else 0.5
    return alpha * (torch.round(torch.clamp(x / alpha, -0.99, 0.99) * half - shift) + shift) / half


@pytest.mark.parametrize("levels", [3, 4])
def test_is_the_formula(levels):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(levels))
    format = StretchedElastic(levels, 64)
    codes = format.encode(x)
    alpha = codes.scales.float() * levels / 2  # as stored: max(abs(x)) but for rounding
    torch.testing.assert_close(alpha, x.abs().amax(-1, keepdim=True), rtol=1e-3, atol=0)
    torch.testing.assert_close(format.quantize(x), paretoq(x, alpha, levels), rtol=1e-5, atol=1e-6)


def test_four_levels_are_balanced_and_have_no_zero():
    x = torch.tensor([[-1.0, -0.6, -0.4, -0.01, 0.01, 0.4, 0.6, 1.0]])
    expected = torch.tensor([[-0.75, -0.75, -0.25, -0.25, 0.25, 0.25, 0.75, 0.75]])
    assert torch.equal(StretchedElastic(4, 8).quantize(x), expected)


@pytest.mark.parametrize("levels", [3, 4])
def test_learned_gradients_are_those_of_the_formula(levels):
    """Autograd through the published formula, rounding taken as the identity, gives the same gradients."""
    generator = torch.Generator().manual_seed(levels + 10)
    x, flow = (torch.randn(6, 32, generator=generator) for _ in range(2))
    format = LearnedScale(StretchedElastic(levels, 32, scale="mean")).bind(x)
    latent = x.clone().requires_grad_()
    (format(latent) * flow).sum().backward()

    reference = x.clone().requires_grad_()
    log_scale = format.log_scale.detach().flatten(1).requires_grad_()
    stored = log_scale.exp() + (log_scale.exp().half().float() - log_scale.exp()).detach()
    alpha, half, shift = stored * levels / 2, levels / 2, 0.0 if levels == 3 else 0.5
    place = torch.clamp(reference / alpha, -1, 1) * half - shift
    code = (place.round() - place).detach().clamp(-0.5, 0.5) + place
    top = (format.highest - place).detach().clamp(max=0) + (format.lowest - place).detach().clamp(min=0)
    inside = (reference / alpha).abs() <= 1
    code = torch.where(inside, code, place.detach() + top)
    (alpha * (code + shift) / half * flow).sum().backward()
    torch.testing.assert_close(latent.grad, reference.grad, rtol=1e-4, atol=1e-5)
    largest = 1.5 if levels == 4 else 1.0
    scaled = log_scale.grad / (32 * largest) ** 0.5
    torch.testing.assert_close(format.log_scale.grad.flatten(1), scaled, rtol=1e-3, atol=1e-4)


def test_choices_are_said():
    with pytest.raises(RazorError, match=r"of 5 levels. Choices: 3, 4"):
        StretchedElastic(5, 8)
    with pytest.raises(RazorError, match=r"'minmax'.*absmax, mean, mse"):
        StretchedElastic(4, 8, scale="minmax")
