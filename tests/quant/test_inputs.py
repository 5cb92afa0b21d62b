"""Inputs are quantized once for all layers that read them, and never remembered wrongly."""

from __future__ import annotations

import copy

import torch

from razor.quant import InputQuantizer, Integer


def calls(quantizer: InputQuantizer) -> list[int]:
    """Grows with each real quantization."""
    seen: list[int] = []
    quantizer.format.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_layers_that_read_one_tensor_share_the_result():
    quantizer = InputQuantizer(Integer(8, 16))
    seen, x = calls(quantizer), torch.randn(4, 32, requires_grad=True)
    first, second = quantizer(x), quantizer(x)
    assert first is second and len(seen) == 1
    (first.sum() + 2 * second.sum()).backward()
    assert (x.grad == 3).all()  # the gradients of both readers


def test_a_changed_or_another_tensor_is_quantized_anew():
    quantizer = InputQuantizer(Integer(8, 16))
    x = torch.randn(4, 32)
    first = quantizer(x).clone()
    x.mul_(2)
    assert torch.equal(quantizer(x), Integer(8, 16).quantize(x)) and not torch.equal(quantizer(x), first)
    for _ in range(50):  # new tensors may get the address of old ones
        x = torch.randn(4, 32)
        assert torch.equal(quantizer(x), Integer(8, 16).quantize(x))


def test_without_gradients_nothing_is_kept():
    quantizer = InputQuantizer(Integer(8, 16))
    with torch.no_grad():
        quantizer(torch.randn(4, 32))
    assert quantizer._remembered is None


def test_a_result_without_gradient_is_not_handed_to_one_who_wants_it():
    quantizer, x = InputQuantizer(Integer(8, 16)), torch.randn(4, 32, requires_grad=True)
    with torch.no_grad():
        assert not quantizer(x).requires_grad
    assert quantizer(x).requires_grad
    with torch.no_grad():
        assert not quantizer(x).requires_grad


def test_a_second_backward_pass_through_the_same_input_works():
    quantizer, x = InputQuantizer(Integer(8, 16)), torch.randn(4, 32, requires_grad=True)
    quantizer(x).sum().backward()
    quantizer(x).sum().backward()
    assert (x.grad == 2).all()


def test_requiring_a_gradient_later_is_noticed():
    quantizer, x = InputQuantizer(Integer(8, 16)), torch.randn(4, 32)
    quantizer(x)
    assert quantizer(x.requires_grad_()).requires_grad


def test_copies_start_without_a_memory():
    quantizer = InputQuantizer(Integer(8, 16))
    quantizer(torch.randn(4, 32, requires_grad=True))
    assert copy.deepcopy(quantizer)._remembered is None
