"""Every weight of a model is found once, under one name, seen the right way; what cannot be quantized says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from razor.errors import RazorError
from razor.quant import (
    Float16,
    Integer,
    LearnedScale,
    MatrixView,
    Placement,
    Plan,
    measure,
    quantize_modules,
    sites,
)


class Experts(nn.Module):
    """As Transformers marks them with `use_experts_implementation`."""

    def __init__(self, transposed: bool, marked: bool = True) -> None:
        super().__init__()
        self.num_experts, self.has_gate = 3, True
        if marked:
            self.is_transposed = transposed
        self.gate_up_proj = nn.Parameter(torch.randn(3, *((8, 16) if transposed else (16, 8))))
        self.down_proj = nn.Parameter(torch.randn(3, *((4, 8) if transposed else (8, 4))))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 16))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.zeros(3))


PLAIN, TURNED = MatrixView(), MatrixView(turned=True)
CASES: list[
    tuple[Callable[[], nn.Module], dict[str, tuple[str, MatrixView, int | None, tuple[int, int]]]]
] = [
    (lambda: nn.Linear(8, 6), {"m": ("linear", PLAIN, 8, (6, 8))}),
    (lambda: nn.Embedding(6, 8), {"m": ("embedding", PLAIN, None, (6, 8))}),
    (lambda: nn.Conv1d(8, 6, 3), {"m": ("conv", PLAIN, 8, (6, 24))}),
    (lambda: nn.Conv2d(8, 6, (3, 5)), {"m": ("conv", PLAIN, 8, (6, 120))}),
    (lambda: nn.Conv3d(8, 6, 2), {"m": ("conv", PLAIN, 8, (6, 64))}),
    (lambda: nn.Conv2d(8, 16, 3, groups=8), {"m": ("conv", PLAIN, 8, (16, 9))}),
    (lambda: Conv1D(6, 8), {"m": ("linear", TURNED, 8, (6, 8))}),
    (Router, {"m": ("other", PLAIN, None, (3, 8))}),
    (lambda: nn.LayerNorm(8), {}),
    (
        lambda: nn.LayerNorm((4, 8)),
        {"m": ("other", PLAIN, None, (4, 8)), "m.bias": ("other", PLAIN, None, (4, 8))},
    ),
    (
        lambda: Experts(transposed=False),
        {
            "m.gate_up_proj": ("experts", MatrixView(leading=2), 8, (48, 8)),
            "m.down_proj": ("experts", MatrixView(leading=2), 4, (24, 4)),
        },
    ),
    (
        lambda: Experts(transposed=True),
        {
            "m.gate_up_proj": ("experts", MatrixView(True, 2), 8, (48, 8)),
            "m.down_proj": ("experts", MatrixView(True, 2), 4, (24, 4)),
        },
    ),
]


def holding(module: nn.Module) -> nn.Module:
    return nn.ModuleDict({"m": module})


@pytest.mark.parametrize(("make", "expected"), CASES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_module_has(make, expected, device):
    found = sites(holding(make()).to(device))
    assert {name: (s.kind, s.view, s.inputs, s.shape) for name, s in found.items()} == expected
    assert all(site.fixed is None and site.name == name for name, site in found.items())


@pytest.mark.parametrize(("make", "expected"), CASES)
def test_a_column_is_an_input(make, expected):
    """Changing input i of a layer's product must touch column i, of every filter or expert, and no other."""
    for site in sites(holding(make())).values():
        marked = torch.arange(site.weight.numel()).reshape(site.weight.shape)
        matrix = site.view.matrix(marked)
        assert tuple(matrix.shape) == site.shape
        assert torch.equal(site.view.back(matrix, marked.shape), marked)
        if site.inputs and site.kind != "conv":
            axis = marked.shape.index(site.inputs, marked.ndim - 2)
            assert set(matrix[:, 1].tolist()) == set(marked.select(axis, 1).flatten().tolist())


class Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_subclasses_are_what_they_inherit_from():
    assert sites(holding(Own(8, 8)))["m"].kind == "linear"


FIXED: list[tuple[Callable[[], nn.Module], set[str], str]] = [
    (lambda: nn.ConvTranspose1d(8, 8, 3), {"m"}, "a transposed convolution"),
    (lambda: nn.ConvTranspose2d(8, 8, 3), {"m"}, "a transposed convolution"),
    (lambda: nn.Embedding(8, 8, max_norm=1.0), {"m"}, "max_norm"),
    (lambda: nn.MultiheadAttention(8, 2), {"m.in_proj_weight", "m.out_proj"}, "MultiheadAttention"),
    (
        lambda: nn.MultiheadAttention(8, 2, kdim=16),
        {"m.q_proj_weight", "m.k_proj_weight", "m.v_proj_weight", "m.out_proj"},
        "MultiheadAttention",
    ),
    (
        lambda: Experts(False, marked=False),
        {"m.gate_up_proj", "m.down_proj"},
        "Experts stores in a way of its own",
    ),
]


@pytest.mark.parametrize(("make", "names", "reason"), FIXED)
def test_what_cannot_be_quantized_has_to_be_left_out_in_so_many_words(make, names, reason):
    model = holding(make())
    assert set(sites(model)) == names
    with pytest.raises(RazorError, match="says nothing about"):
        Plan({}).check(model)
    for place in (Placement(Integer(4, "row")), Placement(Float16(), Integer(8, "row"))):
        with pytest.raises(RazorError, match=f"cannot be quantized: it is .*{reason}.*exclude"):
            Plan(dict.fromkeys(names, place)).check(model)
    plan = Plan(dict.fromkeys(names, Placement(Float16("float16"))))
    before = {name: site.weight.detach().clone() for name, site in sites(model).items()}
    assert measure(model, plan).total.parameters == sum(p.numel() for p in model.parameters())
    quantize_modules(model, plan, torch.float32)
    for name, site in sites(model).items():  # rounded to the 16-bit type that the plan names
        assert torch.equal(getattr(site.module, site.attribute), before[name].half().float())
        assert torch.equal(site.weight, before[name])


def test_a_weight_made_from_others_is_said():
    model = holding(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(
        RazorError, match=r"weight of 'm' is made from other parameters.*remove_parametrizations"
    ):
        sites(model)


def test_a_module_that_a_model_has_twice_is_one_site_and_swapped_everywhere():
    layer = nn.Linear(8, 8)
    model: Any = nn.ModuleDict({"a": layer, "b": layer})
    assert list(sites(model)) == ["a"]
    quantize_modules(model, Plan({"a": Placement(Integer(4, 8))}), torch.float32)
    assert model["a"] is model["b"] and type(model["b"]) is not nn.Linear


def mixed() -> nn.Module:
    return nn.ModuleDict(
        {"linear": nn.Linear(8, 8), "conv": nn.Conv1d(8, 8, 1), "norm": nn.LayerNorm(8), "router": Router()}
    )


@pytest.mark.parametrize("format", [Integer(4, 8), LearnedScale(Integer(4, 8))])
def test_a_quantized_model_has_the_sites_it_had(format):
    model = mixed()
    before = {name: id(site.weight) for name, site in sites(model).items()}
    plan = Plan({"linear": Placement(format), "conv": Placement(format)})
    quantize_modules(model, plan, torch.float32)
    assert {name: id(site.weight) for name, site in sites(model).items()} == before
    assert measure(mixed(), plan).rest.parameters == 8 + 8 + 8 + 8 + 3 * 8 + 3


def test_other_weights_may_be_planned():
    model: Any = mixed()
    places = {name: Placement(Integer(4, 8)) for name in ("linear", "conv", "router")}
    latent = model["router"].weight
    quantize_modules(model, Plan(places), torch.float32)
    assert torch.equal(model["router"].weight, Integer(4, 8).quantize(latent))
    model["router"].weight.sum().backward()
    assert (latent.grad == 1).all() and dict(model.named_parameters())["router.weight"] is latent
    with pytest.raises(RazorError, match=r"'router' \(Router\) takes no activations"):
        Plan(places | {"router": Placement(Integer(4, 8), Integer(8, 8))}).check(mixed())


def test_an_embedding_takes_no_activations():
    with pytest.raises(RazorError, match=r"'m' \(Embedding\) takes no activations"):
        Plan({"m": Placement(Integer(4, 8), Integer(8, 8))}).check(holding(nn.Embedding(6, 8)))


def test_tied_weights_seen_in_two_ways_are_refused():
    model: Any = nn.ModuleDict({"a": nn.Linear(8, 8), "b": Conv1D(8, 8)})
    model["b"].weight = model["a"].weight
    with pytest.raises(
        RazorError, match="'b' and 'a' share one weight but group it along different dimensions"
    ):
        Plan(dict.fromkeys("ab", Placement(Integer(4, 8)))).check(model)
