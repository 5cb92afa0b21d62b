"""Routers of every family: what is kept are the logits that decide, in the order of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from razor.distill import Batch, Needs, RouterKL, RouterZ
from razor.errors import RazorError
from razor.models import make_student, record, shape_of
from razor.models.record import layers_of
from razor.models.routers import routers_of
from razor.quant import Integer, Placement, Plan, sites

LAYERS, EXPERTS = 3, 4
COMMON = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen3_moe": {"num_experts": EXPERTS, "mlp_only_layers": [1]},  # from 0: the second layer is dense
    "qwen2_moe": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 32},
    "gpt_oss": {"num_local_experts": EXPERTS, "layer_types": ["full_attention"] * LAYERS},
    "olmoe": {"num_experts": EXPERTS},
    "granitemoe": {"num_local_experts": EXPERTS},
    "deepseek_v3": {
        "n_routed_experts": EXPERTS,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}


def build(family: str, **fields: Any) -> Any:
    config = CONFIG_MAPPING[family](**(COMMON | FAMILIES[family] | fields))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def routed(family: str) -> set[int]:
    return {"qwen3_moe": {1, 3}, "deepseek_v3": {2, 3}}.get(family, {1, 2, 3})


def batch_of(make_packed: Any) -> Batch:
    batch = make_packed()
    ids = 1 + batch.input_ids % 66
    return replace(batch, input_ids=ids, labels=torch.where(batch.documents >= 0, ids, -100))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_router_weights_times_its_input(family, make_packed):
    model, batch = build(family), batch_of(make_packed)
    with torch.device("meta"):
        assert shape_of(build(family)).routers == dict.fromkeys(sorted(routed(family)), EXPERTS)
    given: dict[int, torch.Tensor] = {}
    found = routers_of(model.get_decoder(), layers_of(model))
    handles = []
    for layer, (router, _) in found.items():

        def keep(_: Any, inputs: Any, layer: int = layer) -> None:
            given[layer] = inputs[0]

        handles.append(router.register_forward_pre_hook(keep))
    before = hooks(model)
    trace = record(model, batch, Needs(routers=frozenset(routed(family))))
    assert set(trace.routers) == routed(family) == set(given) and hooks(model) == before
    for layer, logits in trace.routers.items():
        router: Any = found[layer][0]
        assert logits.shape == (2, 16, EXPERTS)
        for b, t in ((0, 0), (0, 13), (1, 6)):
            x = given[layer].reshape(2, 16, -1)[b, t].double()
            wanted = router.weight.double() @ x
            if getattr(router, "bias", None) is not None:
                wanted = wanted + router.bias.double()
            torch.testing.assert_close(logits[b, t].double(), wanted, rtol=1e-4, atol=1e-5)


def test_only_wanted_routers_are_kept_and_no_hook_stays(make_packed, monkeypatch):
    model, batch = build("mixtral"), batch_of(make_packed)
    before = hooks(model)
    assert set(record(model, batch, Needs(routers=frozenset({2}))).routers) == {2}
    assert record(model, batch).routers == {}
    monkeypatch.setattr(layers_of(model)[2], "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(model, batch, Needs(routers=frozenset({1})))
    assert hooks(model) == before


@pytest.mark.usefixtures("whole_attention")
def test_gradients_are_the_same_under_checkpointing(make_packed):
    batch, found = batch_of(make_packed), []
    for checkpointed in (False, True):
        model = build("qwen3_moe").train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        trace = record(model, batch, Needs(routers=frozenset({1, 3})))
        loss = RouterZ()
        loss.fit(shape_of(model), shape_of(model))
        total = trace.hidden.square().mean()
        for layer in loss.select(None, batch):
            total = total + loss.per_token(trace.routers[layer], trace.routers[layer], batch).sum()
        total.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert any("gate.weight" in name and g.abs().sum() > 0 for name, g in found[0].items())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_quantized_student_against_its_teacher(family, make_packed):
    teacher, batch = build(family), batch_of(make_packed)
    plan = Plan({name: Placement(Integer(4, 16), None) for name, s in sites(teacher).items() if not s.fixed})
    student = make_student(teacher, plan, torch.float32)
    shape = shape_of(student)
    assert shape.routers == shape_of(teacher).routers
    loss = RouterKL()
    loss.fit(shape, shape_of(teacher))
    needs = Needs(routers=loss.teacher_layers())
    with torch.no_grad():
        reference = record(teacher, batch, needs)
    trace = record(student, batch, needs)
    value = sum(loss.per_token(trace.routers[i], reference.routers[i], batch).mean() for i in needs.routers)
    assert 0 < float(value.detach()) < 5
    value.backward()
    routers = [p for n, p in student.named_parameters() if n.endswith(("gate.weight", "router.weight"))]
    assert routers and all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)


def test_models_without_routers_are_said(make_packed):
    config = CONFIG_MAPPING["llama"](**COMMON)
    model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(model)
    assert shape.routers == {}
    for loss in (RouterKL(), RouterZ()):
        with pytest.raises(RazorError, match="LlamaForCausalLM has no router whose logits can be recorded"):
            loss.fit(shape, shape)
    with pytest.raises(RazorError, match="Layer 2 of LlamaForCausalLM has no router"):
        record(model, batch_of(make_packed), Needs(routers=frozenset({2})))
    with pytest.raises(RazorError, match=r"layer 2 of Qwen3Moe\w+ has no router.*Layers that do: 1, 3"):
        moe = shape_of(build("qwen3_moe"))
        RouterKL([2]).fit(moe, moe)
