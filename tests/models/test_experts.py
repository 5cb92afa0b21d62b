"""Stacked experts of Transformers, as Qwen3-MoE, gpt-oss and Nemotron-H store them, against a loop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from razor.errors import RazorError
from razor.quant import (
    Format,
    Integer,
    LearnedScale,
    Placement,
    Plan,
    RowMix,
    Ternary,
    packed_state,
    quantize_modules,
    sites,
    swap_in_coded,
)

HIDDEN, INNER, EXPERTS, TOKENS, TOP = 64, 32, 4, 10, 2
SIZES = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER}
KINDS: dict[str, Any] = {
    "qwen3_moe": (Qwen3MoeExperts, SIZES | {"num_experts": EXPERTS}),
    "gpt_oss": (
        GptOssExperts,
        {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_local_experts": EXPERTS},
    ),
    "nemotron_h": (NemotronHExperts, SIZES | {"n_routed_experts": EXPERTS, "moe_latent_size": None}),
}
MIXED, A8 = RowMix(Integer(4, 32), Ternary(32), 0.5), Integer(8, 32)


class Block(nn.Module):
    def __init__(self, kind: str, implementation: str = "grouped_mm") -> None:
        super().__init__()
        torch.manual_seed(0)
        cls, fields = KINDS[kind]
        config = AutoConfig.for_model(kind, **fields)
        config._experts_implementation = implementation
        self.experts = cls(config)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, *routing: Tensor) -> Tensor:
        return self.experts(x, *routing)  # type: ignore[no-any-return]


def routed() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    chosen = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:TOP] for _ in range(TOKENS)])
    return x, chosen, torch.rand(TOKENS, TOP, generator=generator)  # the last expert is never asked


def placed(block: nn.Module, weights: Format = MIXED, activations: Format | None = A8) -> Plan:
    return Plan({name: Placement(weights, activations) for name in sites(block)})


def student(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Plan]:
    block = Block(kind, options.pop("implementation", "grouped_mm"))
    plan = placed(block, **options)
    return quantize_modules(block, plan, dtype), plan


def by_hand(
    block: Any, x: Tensor, chosen: Tensor, scores: Tensor, weights: Format, activations: Any
) -> Tensor:
    """Token by token and expert by expert, on [out, in] matrices quantized one whole tensor at a time."""
    experts, matrices = block.experts, {}
    for name in ("up_proj", "gate_up_proj", "down_proj"):
        if (stacked := getattr(experts, name, None)) is not None:
            stacked = stacked.mT if experts.is_transposed else stacked
            matrices[name] = weights.quantize(stacked.flatten(0, 1)).view(stacked.shape)
    zero = torch.zeros(EXPERTS, 1)
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    bias = {n: getattr(experts, f"{n}_bias", zero).bfloat16().float() for n in (first, "down_proj")}
    gate = experts._apply_gate if experts.has_gate else experts.act_fn
    rounded = activations.quantize if activations else (lambda value: value)
    out = torch.zeros(len(x), HIDDEN)
    for token in range(len(x)):
        for expert, score in zip(chosen[token], scores[token], strict=True):
            inner = matrices[first][expert] @ rounded(x[token]) + bias[first][expert]
            outer = matrices["down_proj"][expert] @ rounded(gate(inner)) + bias["down_proj"][expert]
            out[token] += score * outer
    return out


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("activations", [None, A8], ids=["a16", "a8"])
def test_both_products_are_those_of_a_loop_by_hand(kind, implementation, activations):
    wanted = by_hand(Block(kind), *routed(), MIXED, activations)
    quantized, _ = student(kind, implementation=implementation, activations=activations)
    found = quantized(*routed())
    assert found.shape == (TOKENS, HIDDEN)
    # a sum in another order may put an activation on the other side of a rounding boundary: one step of 255
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=2e-2 if activations else 1e-4)
    assert not torch.allclose(Block(kind)(*routed()), wanted, rtol=1e-2, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize("which", ["gate_up_proj", "down_proj"])
def test_each_product_has_activations_of_its_own(which):
    """Coarse activations on one product only are felt, and are those of the loop with that product alone."""
    block = Block("qwen3_moe")
    places = {
        n: Placement(Integer(8, 32), Integer(2, 32) if n.endswith(which) else None) for n in sites(block)
    }
    outputs = [quantize_modules(Block("qwen3_moe"), Plan(places), torch.float32)(*routed())]
    outputs += [
        student("qwen3_moe", weights=Integer(8, 32), activations=a)[0](*routed())
        for a in (None, Integer(2, 32))
    ]
    assert not torch.allclose(outputs[0], outputs[1], atol=0.1) and not torch.allclose(
        outputs[0], outputs[2], atol=0.1
    )


@pytest.mark.parametrize("kind", ["qwen3_moe", "nemotron_h"])
def test_an_implementation_that_hides_the_inner_activations_is_refused(kind):
    quantized, _ = student(kind, implementation="eager")
    if kind == "nemotron_h":  # its own loop calls the activation module, so nothing is hidden
        torch.testing.assert_close(quantized(*routed()), student(kind)[0](*routed()), rtol=1e-2, atol=2e-2)
        return
    with pytest.raises(RazorError, match=r"'eager' hides the inputs of down_proj.*grouped_mm"):
        quantized(*routed())
    quantized.experts.config._experts_implementation = "grouped_mm"
    quantized(*routed())
    weights_only, _ = student(kind, implementation="eager", activations=None)
    torch.testing.assert_close(weights_only(*routed()), student(kind, activations=None)[0](*routed()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_reach_latents_also_under_checkpointing(kind, reentrant):
    quantized, _ = student(kind)
    found = []
    for checkpointed in (False, True):
        x, chosen, scores = routed()
        x.requires_grad_()
        arguments = (x, chosen, scores)
        out = (
            checkpoint(quantized, *arguments, use_reentrant=reentrant)
            if checkpointed
            else quantized(*arguments)
        )
        out.square().sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in quantized.parameters())])
        quantized.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    for name, site in sites(quantized).items():
        index = [id(p) for p in quantized.parameters()].index(id(site.weight))
        touched = found[0][1 + index].abs().sum((1, 2)) > 0
        assert touched.tolist() == [True] * (EXPERTS - 1) + [False], (
            name
        )  # straight through, and no other expert


def test_a_weight_is_read_once_a_pass():
    quantized, _ = student("qwen3_moe")
    calls: list[str] = []
    for name in ("weights_gate_up_proj", "weights_down_proj"):
        getattr(quantized.experts, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    quantized(*routed())
    assert sorted(calls) == ["weights_down_proj", "weights_gate_up_proj"]


def test_scales_of_experts_can_be_learned():
    quantized, _ = student("gpt_oss", weights=LearnedScale(Integer(4, 32)))
    quantized(*routed()).square().sum().backward()
    scales = {name: p for name, p in quantized.named_parameters() if name.endswith("log_scale")}
    assert len(scales) == 2 and all(p.grad.abs().sum() > 0 for p in scales.values())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [True, False])
def test_packed_experts_compute_the_same(kind, dtype, keep):
    quantized, plan = student(kind, dtype)
    state = packed_state(quantized, plan)
    coded: Any = Block(kind).to(dtype)
    swap_in_coded(coded, plan, dtype, "decoded" if keep else "packed")
    coded.load_state_dict(state, assign=True)
    coded.to(dtype)
    x, chosen, scores = routed()
    expected = quantized(x.to(dtype), chosen, scores.to(dtype))
    assert expected.dtype == dtype
    assert torch.equal(coded(x.to(dtype), chosen, scores.to(dtype)), expected)
    assert set(coded.state_dict()) == set(state)
    assert "experts.coded_down_proj.high_codes" in state and "experts.down_proj" not in state


@torch.no_grad()
def test_a_token_changes_no_other():
    quantized, _ = student("qwen3_moe")
    x, chosen, scores = routed()
    before = quantized(x, chosen, scores)
    x[-1] *= 100
    after = quantized(x, chosen, scores)
    assert torch.equal(before[:-1], after[:-1]) and not torch.equal(before[-1], after[-1])
