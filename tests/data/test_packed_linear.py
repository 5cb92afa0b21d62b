from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from razor.data import packed_linear
from razor.data.packed_linear import packed_linears


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model).to(torch.bfloat16)


def linears(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


@torch.inference_mode()
def test_logits_are_the_same_bits_and_the_model_is_left_as_it_was(model):
    ids = torch.arange(60).view(4, 15)
    plain = model(ids).logits
    with packed_linears(model) as count:
        if not count:
            pytest.skip("this processor has no packed bf16 products, or they round in another way")
        assert count == len(linears(model)) == 15
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids[:1, :1]).logits, plain[:1, :1])
    assert not any("forward" in vars(layer) for layer in linears(model))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # nothing remembers the old weights
        assert not model(ids).logits.any()


@torch.inference_mode()
def test_biases_are_added():
    layer = nn.Linear(64, 48, dtype=torch.bfloat16)
    x = torch.randn(5, 3, 64, dtype=torch.bfloat16)
    plain = layer(x)
    with packed_linears(layer):
        assert torch.equal(layer(x), plain)


def test_what_is_not_the_same_stays_plain(model, tiny_model, monkeypatch):
    class Other(nn.Linear):
        pass

    with packed_linears(tiny_model) as count:  # fp32
        assert count == 0
    with packed_linears(Other(8, 8, dtype=torch.bfloat16)) as count:
        assert count == 0
    monkeypatch.setattr(packed_linear, "_agrees", lambda layer, forward: False)
    with torch.inference_mode(), packed_linears(model) as count:
        assert count == 0 and not any("forward" in vars(layer) for layer in linears(model))


def test_large_models_are_not_copied(model, monkeypatch):
    monkeypatch.setattr(packed_linear, "MOST_BYTES", 1)
    with torch.inference_mode(), packed_linears(model) as count:
        assert count == 0


def test_an_error_leaves_no_packed_layer(model):
    with pytest.raises(KeyboardInterrupt), torch.inference_mode(), packed_linears(model):
        raise KeyboardInterrupt
    assert not any("forward" in vars(layer) for layer in linears(model))
