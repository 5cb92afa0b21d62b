"""Learned scales: LSQ's gradients, training, and what happens around them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from razor.errors import RazorError
from razor.quant import (
    Affine,
    FakeQuantizer,
    Integer,
    LearnedScale,
    QuantLinear,
    RowMix,
    Ternary,
    set_progress,
)


def reference(x, scale, lowest, highest, zero=0.0):
    """LSQ written out with detach tricks: scale and x get their gradients from autograd."""
    place = x / scale + zero
    inside = (place >= lowest) & (place <= highest)
    code = place + (place.round() - place).detach()
    return (torch.where(inside, code, place.detach().round().clamp(lowest, highest)) - zero) * scale


@pytest.mark.parametrize(
    "base", [Integer(4, 16), Integer(2, 16, "mean"), Ternary(16), Ternary(16, 1.0), Affine(3, 16, "mse")]
)
def test_gradients_are_those_of_lsq(base):
    generator = torch.Generator().manual_seed(0)
    x, flow = (torch.randn(5, 48, generator=generator) for _ in range(2))
    format = LearnedScale(base).bind(x)
    assert torch.equal(format.quantize(x), base.quantize(x))  # it starts where its base is
    with torch.no_grad():
        format.log_scale -= 0.2  # some weights now lie beyond the range
    latent = x.clone().requires_grad_()
    (format(latent) * flow).sum().backward()

    own, log_scale = x.clone().requires_grad_(), format.log_scale.detach().clone().requires_grad_()
    scale = log_scale.exp()
    scale = scale + (scale.half().float() - scale).detach()
    zero = 0.0 if format.zero is None else format.zero
    out = reference(own.unflatten(-1, (-1, 16)), scale, base.lowest, base.highest, zero)
    torch.testing.assert_close(format.quantize(x), out.detach().flatten(-2), rtol=1e-6, atol=1e-6)
    (out.flatten(-2) * flow).sum().backward()
    torch.testing.assert_close(latent.grad, own.grad)
    assert 0 < (latent.grad == 0).float().mean() < 0.7
    scaled = log_scale.grad / math.sqrt(16 * base.highest)
    torch.testing.assert_close(format.log_scale.grad, scaled, rtol=1e-3, atol=1e-5)


def layer(format, weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data.copy_(weight)
    return QuantLinear.from_linear(linear, FakeQuantizer.for_weight(linear.weight, format), None)


def test_training_the_scale_alone_finds_a_better_one():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    quantized = layer(LearnedScale(Integer(3, 64)), weight)
    quantized.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in quantized.parameters() if p.requires_grad], lr=0.02)
    errors = []
    for _ in range(60):
        error = (quantized.quantized_weight(torch.float32) - weight).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    searched = (Integer(3, 64, scale="mse").quantize(weight) - weight).square().mean()
    assert errors[-1] < 0.8 * errors[0] and errors[-1] < 1.05 * searched


def test_a_step_of_the_scale_is_seen_although_the_weight_stood_still():
    weight = torch.randn(4, 16)
    quantized = layer(LearnedScale(Ternary(16)), weight)
    before = quantized.quantized_weight(torch.float32).detach().clone()
    with torch.no_grad():
        quantized.weights.format.log_scale += 0.1
    assert not torch.equal(quantized.quantized_weight(torch.float32), before)


def test_scales_are_parameters_and_part_of_the_state():
    quantized = layer(LearnedScale(Ternary(8)), torch.randn(4, 16))
    assert quantized.weights.format.log_scale.shape == (4, 2, 1)
    assert {"weight", "weights.format.log_scale"} <= set(quantized.state_dict())


def test_inside_a_mixed_matrix_each_row_has_the_gradient_of_its_format():
    generator = torch.Generator().manual_seed(5)
    x, flow = (torch.randn(6, 32, generator=generator) for _ in range(2))
    mix = RowMix(LearnedScale(Integer(4, 16)), Ternary(16), 0.5).bind(x)
    latent = x.clone().requires_grad_()
    (mix(latent) * flow).sum().backward()
    alone = LearnedScale(Integer(4, 16)).bind(x[::2])
    part = x[::2].clone().requires_grad_()
    (alone(part) * flow[::2]).sum().backward()
    assert torch.equal(latent.grad[::2], part.grad)
    assert torch.equal(latent.grad[1::2], flow[1::2])
    assert torch.equal(mix.high.log_scale.grad, alone.log_scale.grad)


def test_two_weights_have_scales_of_their_own():
    described = LearnedScale(Ternary(8))
    first, second = (described.bind(torch.randn(2, 8)) for _ in range(2))
    assert first is not second and described.log_scale is None
    assert not torch.equal(first.log_scale, second.log_scale)


def test_choices_are_said():
    with pytest.raises(RazorError, match="cannot be the base"):
        LearnedScale(LearnedScale(Ternary(8)))
    with pytest.raises(RazorError, match=r"lr_multiplier=0 must be above 0"):
        LearnedScale(Ternary(8), 0)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_groups_of_zeros_can_wake_up(share):
    """With the scale that fits zeros, the smallest there is, whatever a weight learned would lie out of range."""
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[: int(4 * share)] = 0.0
    format = LearnedScale(Ternary(16)).bind(weight)
    assert torch.equal(format.quantize(weight), Ternary(16).quantize(weight))
    moved = weight + 1e-3  # the step of an optimizer
    own, _ = format.gradients(moved, torch.ones_like(moved))
    assert (own[: int(4 * share)] == 1).all()


def test_a_softened_base_has_the_gradient_of_what_was_computed():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    format = LearnedScale(Ternary(16, anneal=0.5)).bind(x)
    set_progress(format, 0.1)
    flow = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    _, found = format.gradients(x, flow)
    scale = format.log_scale.detach().exp()
    place = x.unsqueeze(-2) / scale
    soft = format.fake(x).unsqueeze(-2) / scale
    slope = torch.where(place.abs() <= 1, soft - place, soft)
    wanted = (flow.unsqueeze(-2) * slope).sum(-1, keepdim=True) / 16**0.5 * scale
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert not torch.equal(soft, soft.round())
