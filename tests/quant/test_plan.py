from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from razor.errors import RazorError
from razor.quant import (
    Float16,
    Integer,
    Placement,
    Plan,
    QuantEmbedding,
    QuantLinear,
    RowMix,
    Ternary,
    quantize_modules,
)


class Net(nn.Module):
    def __init__(self, tie: bool = True, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 16)
        self.inner = nn.Sequential(
            nn.LayerNorm(16), nn.Linear(16, 24, bias), nn.ReLU(), nn.Linear(24, 16, bias)
        )
        self.head = nn.Linear(16, 12, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embedding(tokens)))  # type: ignore[no-any-return]


def modules(**changes: Any) -> dict[str, Placement]:
    """A plan's modules for Net; a change to None takes an entry away."""
    placed: dict[str, Any] = {
        "embedding": Placement(Integer(4, 8)),
        "inner.1": Placement(RowMix(Integer(4, 8), Ternary(8), 0.5), Integer(8, 8)),
        "inner.3": Placement(Ternary(8), Integer(8, 8)),
        "head": Placement(Integer(4, 8), Integer(8, 8)),
    }
    placed |= {name.replace("_", "."): place for name, place in changes.items()}
    return {name: place for name, place in placed.items() if place is not None}


def test_a_plan_that_fits():
    for device in ("cpu", "meta"):
        Plan(modules()).check(Net().to(device))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"inner_4": Placement(Ternary(8))},
            r"names 'inner\.4', which the model lacks\. Did you mean 'inner\.3'",
        ),
        (
            {"inner_0": Placement(Ternary(8))},
            r"'inner\.0', a LayerNorm: only linear layers, embeddings, convolutions",
        ),
        ({"inner": Placement(Ternary(8))}, "'inner', a Sequential"),
        ({"inner_3": None}, r"nothing about 1 modules, first 'inner\.3'"),
        ({"inner_3": None, "inner_1": None}, r"nothing about 2 modules, first 'inner\.1'"),
        ({"head": Placement(Ternary(8))}, "'head' and 'embedding' share one weight"),
        (
            {"inner_3": Placement(Ternary(16))},
            r"Group 16 does not divide the 24 inputs of 'inner\.3'.* 8, 12, 24",
        ),
        ({"inner_1": Placement(Ternary(8), Integer(8, 32))}, r"Group 32 .* 16 inputs of 'inner\.1'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_change(changes, words):
    net, plan = Net(), Plan(modules(**changes))
    with pytest.raises(RazorError, match=words) as problem:
        quantize_modules(net, plan, torch.bfloat16)
    assert "\n" not in str(problem.value)
    assert type(net.head) is nn.Linear
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(RazorError, match=words):
        plan.check(empty)


def test_untied_weights_may_differ():
    Plan(modules(head=Placement(Ternary(8)))).check(Net(tie=False))


def test_a_long_model_gives_a_short_hint():
    net = nn.ModuleList([nn.Linear(8, 8) for _ in range(300)])
    with pytest.raises(RazorError) as problem:
        Plan({"3000": Placement(Ternary(8))}).check(net)
    assert len(str(problem.value)) < 500


@pytest.mark.parametrize("kv_cache", [None, Integer(8, 16)])
def test_a_plan_survives_json(kv_cache):
    plan = Plan(modules(), kv_cache, Float16("float16"))
    data = json.loads(json.dumps(plan.to_dict()))
    back = Plan.from_dict(data)
    assert back.to_dict() == plan.to_dict() == data
    assert list(back.modules) == list(plan.modules)
    x = torch.randn(7, 16)
    for name, place in plan.modules.items():
        other = back.modules[name]
        assert torch.equal(other.weights.encode(x).values, place.weights.encode(x).values)
        assert (other.activations is None) == (place.activations is None)
    assert (back.kv_cache is None) == (kv_cache is None) and back.rest.spec()["dtype"] == "float16"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"modules": []},
        {"modules": {"a": {}}, "kv_cache": None, "rest": {"kind": "Float16"}},
        {"modules": {"a": None}, "kv_cache": None, "rest": {"kind": "Float16"}},
        {"modules": {}, "kv_cache": None},
    ],
)
def test_what_is_no_plan_is_said(data):
    with pytest.raises(RazorError, match="no plan"):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "Quaternary", "group": 8}, r"'Quaternary'.*Did you mean 'Ternary'"),
        (None, "null must be a mapping"),
    ],
)
def test_a_format_of_a_plan_that_is_none_is_said(spec, words):
    data = {"modules": {"inner.1": {"weights": spec, "activations": None}}, "kv_cache": None}
    with pytest.raises(RazorError, match=rf"^modules\.inner\.1\.weights.*{words}"):
        Plan.from_dict(data | {"rest": {"kind": "Float16"}})


def test_every_layer_is_swapped_and_every_parameter_kept():
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    kept = {id(parameter) for parameter in net.parameters()}
    assert quantize_modules(net, Plan(modules()), torch.float32) is net
    assert isinstance(net.embedding, QuantEmbedding) and isinstance(net.head, QuantLinear)
    assert isinstance(net.inner[1], QuantLinear) and isinstance(net.inner[3], QuantLinear)
    assert {id(parameter) for parameter in net.parameters()} == kept
    assert len(list(net.parameters())) == len(names)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float32])
def test_latents_are_fp32_and_the_pass_is_in_the_compute_dtype(loaded, compute):
    net = quantize_modules(Net().to(loaded), Plan(modules()), compute)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    out = net(torch.arange(12))
    assert out.dtype == compute
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("rest", ["bfloat16", "float16"])
def test_norms_and_biases_are_rounded_with_a_gradient(rest):
    net: Any = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1.5)
    latents = [net.inner[0].weight, net.inner[0].bias, net.inner[1].bias, net.inner[3].bias]
    quantize_modules(net, Plan(modules(), rest=Float16(rest)), torch.float32)
    used = [net.inner[0].weight, net.inner[0].bias, net.inner[1].bias, net.inner[3].bias]
    for latent, now in zip(latents, used, strict=True):
        assert torch.equal(now, latent.to(getattr(torch, rest)).float()) and not torch.equal(now, latent)
    sum(now.sum() for now in used).backward()  # type: ignore[union-attr]
    assert all((latent.grad == 1).all() for latent in latents)
    with torch.no_grad():
        latents[0].mul_(2)
    assert torch.equal(net.inner[0].weight, latents[0].to(getattr(torch, rest)).float())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training):
    net = quantize_modules(Net().train(training), Plan(modules()), torch.float32)
    assert all(module.training == training for module in (net, net.embedding, net.head))  # type: ignore[union-attr]


def test_a_model_is_quantized_once():
    net = quantize_modules(Net(), Plan(modules()), torch.float32)
    with pytest.raises(RazorError, match="This Net is quantized already"):
        quantize_modules(net, Plan(modules()), torch.float32)
