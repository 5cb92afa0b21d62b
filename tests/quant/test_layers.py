"""Quantized layers: anew after every change, once between changes, always from the latent weight."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.quant import (
    Format,
    Integer,
    Placement,
    Plan,
    QuantEmbedding,
    QuantLinear,
    Ternary,
    quantize_modules,
    set_progress,
)
from razor.quant.layers import FakeQuantizer, InputQuantizer


def layer(
    weights: Format | None = None, activations: Format | None = None, bias: bool = False
) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_linear(nn.Linear(16, 6, bias), FakeQuantizer(weights or Ternary(8)), activations)


def counted(format: Format) -> Mock:
    """Count calls of `fake` from now on."""
    format.fake = Mock(wraps=format.fake)  # type: ignore[method-assign]
    return format.fake


def is_fresh(quantized: QuantLinear, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the layer computes with the codes of its latent weight as it is now."""
    expected = type(quantized.weights.format).quantize(
        quantized.weights.format, quantized.weight.detach(), dtype
    )
    return torch.equal(quantized.quantized_weight(dtype).detach(), expected)


def test_forward_is_the_plain_layer_on_quantized_numbers():
    weights, activations = Ternary(8), Integer(8, 8)
    quantized = layer(weights, activations, bias=True)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 5, 16).to(dtype)
        quantized.bias.data = quantized.bias.data.to(dtype)
        expected = F.linear(
            activations.quantize(x), weights.quantize(quantized.weight, dtype), quantized.bias
        )
        assert quantized(x).dtype == dtype and torch.equal(quantized(x), expected)


def test_embedding_looks_up_quantized_rows():
    embedding = nn.Embedding(10, 16, padding_idx=3)
    weights = Integer(4, 8)
    quantized = QuantEmbedding.from_embedding(embedding, FakeQuantizer(weights), torch.bfloat16)
    tokens = torch.randint(0, 10, (2, 4))
    assert quantized.weight is embedding.weight and quantized.padding_idx == 3
    assert torch.equal(quantized(tokens), weights.quantize(embedding.weight, torch.bfloat16)[tokens])


def test_gradients_reach_latents_and_input():
    quantized = layer(activations=Integer(8, 8))
    x = torch.randn(4, 16, requires_grad=True)
    out = quantized(x)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    torch.testing.assert_close(quantized.weight.grad, gradient.T @ quantized.quantized_input(x).detach())
    torch.testing.assert_close(x.grad, gradient @ quantized.quantized_weight(torch.float32).detach())


def test_parameters_are_shared_and_meta_works():
    linear = nn.Linear(16, 6)
    assert QuantLinear.from_linear(linear, FakeQuantizer(Ternary(8)), None).weight is linear.weight
    on_meta = nn.Linear(16, 6, device="meta")
    assert QuantLinear.from_linear(on_meta, FakeQuantizer(Ternary(8)), None).weight.is_meta


def test_state_dict_holds_latents_only():
    assert set(layer(activations=Integer(8, 8), bias=True).state_dict()) == {"weight", "bias"}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True),
    "adamw_single": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=False, fused=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=5.0),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=5.0, momentum=0.9, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=5.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_of_every_optimizer_is_seen(name):
    quantized = layer()
    optimizer = OPTIMIZERS[name]([quantized.weight])
    for _ in range(3):
        before = quantized.quantized_weight(torch.float32).clone()
        quantized(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        assert is_fresh(quantized)
        assert not torch.equal(quantized.quantized_weight(torch.float32), before)
        optimizer.zero_grad()


def test_an_optimizer_that_evaluates_while_it_steps_is_seen():
    quantized = layer(Integer(8, 8))
    optimizer = torch.optim.LBFGS([quantized.weight], lr=0.05, max_iter=3)
    x, seen = torch.randn(4, 16), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(is_fresh(quantized))
        loss = (quantized(x) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert len(seen) > 1 and all(seen) and is_fresh(quantized)


CHANGES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "copy": lambda _, w: w.copy_(-w),
    "mul": lambda _, w: w.mul_(-1),
    "slice": lambda _, w: w[2:4].fill_(3.0),
    "foreach": lambda _, w: torch._foreach_mul_([w], -1.0),
    "lerp": lambda _, w: w.lerp_(-w, 0.9),
    "init": lambda _, w: nn.init.normal_(w),
    "load": lambda m, w: m.load_state_dict({"weight": -w.clone()}),
    "load_assign": lambda m, w: m.load_state_dict({"weight": -w.clone()}, assign=True),
    "new_parameter": lambda m, w: setattr(m, "weight", nn.Parameter(-w.clone())),
    "vector": lambda m, w: nn.utils.vector_to_parameters(-w.flatten(), [m.weight]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_outside_an_optimizer_are_seen(name):
    quantized = layer()
    before = quantized.quantized_weight(torch.float32).clone()
    with torch.no_grad():
        CHANGES[name](quantized, quantized.weight)
    assert is_fresh(quantized)
    assert not torch.equal(quantized.quantized_weight(torch.float32), before)


def test_a_new_parameter_is_not_taken_for_the_one_before():
    """Same memory, same version, another parameter: as when a freed address is given out again."""
    quantized, memory = layer(), np.linspace(-1, 2, 96, dtype=np.float32).reshape(6, 16)
    for sign in (1, -1, 2):
        memory *= sign
        quantized.weight = nn.Parameter(torch.from_numpy(memory))
        assert quantized.weight._version == 0 and quantized.weight.data_ptr() == memory.ctypes.data
        assert is_fresh(quantized)


def test_quantized_once_between_changes():
    quantized = layer()
    calls = counted(quantized.weights.format)
    x = torch.randn(4, 16)
    for _ in range(3):  # micro-batches
        quantized(x).sum().backward()
    with torch.no_grad():
        quantized(x)
    with torch.inference_mode():
        quantized(x)
    assert calls.call_count == 1
    torch.optim.AdamW(quantized.parameters(), fused=True).step()
    quantized(x), quantized(x)
    assert calls.call_count == 2


def test_a_weight_never_shrinks_by_use():
    """Re-quantizing a ternary weight would: its mean magnitude is smaller than the scale it came from."""
    quantized = layer()
    latent, x = quantized.weight.detach().clone(), torch.randn(4, 16)
    first = quantized(x).detach()
    for _ in range(5):
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0).step()  # somebody else's step: quantize anew
        assert torch.equal(quantized(x), first)
    assert torch.equal(quantized.weight, latent)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_used_first_for_inference_then_trained(mode):
    quantized = layer(activations=Integer(8, 8))
    x = torch.randn(4, 16)
    with mode():
        seen = quantized(x)
    out = quantized(x)
    assert torch.equal(out, seen)
    out.sum().backward()
    assert quantized.weight.grad is not None and quantized.weight.grad.abs().sum() > 0


def test_two_compute_dtypes_do_not_mix():
    quantized = layer()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert quantized.quantized_weight(dtype).dtype == dtype and is_fresh(quantized, dtype)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))  # type: ignore[no-any-return]


def tied() -> Any:
    plan = Plan({"embedding": Placement(Ternary(8)), "head": Placement(Ternary(8), Integer(8, 8))})
    return quantize_modules(Tied(), plan, torch.float32)


def test_a_tied_weight_is_quantized_once_and_trained_from_both_ends():
    model = tied()
    assert model.head.weight is model.embedding.weight and model.head.weights is model.embedding.weights
    calls = counted(model.head.weights.format)
    tokens = torch.randint(0, 12, (3, 5))
    model(tokens).square().sum().backward()
    assert calls.call_count == 1 and len(list(model.parameters())) == 1
    used = set(tokens.flatten().tolist())
    assert {i for i in range(12) if model.embedding.weight.grad[i].abs().sum() > 0} >= used
    torch.optim.AdamW(model.parameters(), fused=True).step()
    model(tokens)
    assert calls.call_count == 2


def test_a_copy_is_independent():
    model, tokens = tied(), torch.arange(12)
    before = model(tokens).detach()
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight is not model.head.weight
    assert twin.head.weights is twin.embedding.weights
    assert torch.equal(twin(tokens), before)
    with torch.no_grad():
        twin.head.weight.mul_(-2).add_(0.1)
    assert not torch.equal(twin(tokens), before) and torch.equal(model(tokens), before)


def test_a_model_can_be_pickled():
    model, tokens, stream = tied(), torch.arange(12), io.BytesIO()
    before = model(tokens).detach()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(tokens), before)


@pytest.mark.parametrize("way", ["half", "bfloat16"])
@pytest.mark.parametrize("rows", [8, 64, 256, 512])
def test_a_round_trip_through_16_bits_is_a_change(way, rows):
    """It goes through `data`, and the memory may be given back at the same address."""
    linear = nn.Linear(64, rows, bias=False)
    quantized = QuantLinear.from_linear(linear, FakeQuantizer.for_weight(linear.weight, Ternary(64)), None)
    quantized.quantized_weight(torch.float32)
    getattr(quantized, way)().float()
    assert quantized.weights._remembered is None  # whatever address it has now
    wanted = Ternary(64).quantize(quantized.weight.detach())
    assert torch.equal(quantized.quantized_weight(torch.float32).detach(), wanted)


def test_inputs_are_quantized_anew_when_their_format_has_moved():
    quantizer, x = InputQuantizer(Ternary(8, anneal=0.5)), torch.randn(2, 8)
    set_progress(quantizer, 0.0)
    soft = quantizer(x)
    set_progress(quantizer, 0.5)
    assert not torch.equal(quantizer(x), soft)
    assert torch.equal(quantizer(x), Ternary(8).quantize(x))
