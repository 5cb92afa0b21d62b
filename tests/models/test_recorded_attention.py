"""What attention works on is caught in every family, and nothing of the model changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from razor.distill import AttentionInputs, AttentionRelations, Batch, Needs
from razor.errors import RazorError
from razor.models import quantize_kv, record, shape_of
from razor.models.intercepted import reachable_attention
from razor.models.record import layers_of
from razor.models.recorded_attention import recorded_attention
from razor.quant import Integer

LAYERS, WINDOW = 3, 4
COMMON = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gpt2": {"n_inner": 64, "num_key_value_heads": 6},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
CASES = [(family, how) for family in FAMILIES for how in ("sdpa", "eager")]
EVERY = frozenset(range(1, LAYERS + 1))


def build(family: str, attention: str = "sdpa", **fields: Any) -> Any:
    config = CONFIG_MAPPING[family](**(COMMON | FAMILIES[family] | fields))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def batch_of(make_packed: Any) -> Batch:
    batch = make_packed()
    return replace(batch, input_ids=1 + batch.input_ids % 66)


def configs(model: Any) -> list[tuple[int, str]]:
    """Identity and implementation of every config that a module of the model has."""
    return [(id(m.config), m.config._attn_implementation) for m in model.modules() if hasattr(m, "config")]


def by_hand(inputs: AttentionInputs, batch: Batch, window: int | None, scaling: float) -> Tensor:
    """Attention's output [B, T, heads * head_dim], one token at a time; zeros on padding."""
    queries, keys, values = (x.double() for x in (inputs.queries, inputs.keys, inputs.values))
    rows, heads, tokens, _ = queries.shape
    groups = heads // keys.shape[1]
    out = torch.zeros(rows, tokens, heads, values.shape[-1], dtype=torch.float64)
    for b, t in (batch.documents >= 0).nonzero().tolist():
        seen = [s for s in range(t + 1) if batch.documents[b, s] == batch.documents[b, t]]
        seen = [s for s in seen if window is None or t - s < window]
        for h in range(heads):
            scores = scaling * keys[b, h // groups, seen] @ queries[b, h, t]
            out[b, t, h] = scores.softmax(0) @ values[b, h // groups, seen]
    return out.flatten(2)


@torch.no_grad()
@pytest.mark.parametrize(("family", "how"), CASES)
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "kv4"])
def test_what_was_caught_gives_the_attentions_own_output(family, how, quantized, make_packed):
    """By the formula of attention, from what was caught, to what the layer's output projection was given."""
    model, batch = build(family, how), batch_of(make_packed)
    if quantized:
        quantize_kv(model, Integer(4, 8))
    before, plain = configs(model), model(batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    given: dict[int, Tensor] = {}
    modules = reachable_attention(layers_of(model))
    handles = []
    for layer, module in modules.items():
        out = getattr(module, "o_proj", None) or module.c_proj

        def keep(_: Any, inputs: Any, layer: int = layer) -> None:
            given[layer] = inputs[0]

        handles.append(out.register_forward_pre_hook(keep))
    trace = record(model, batch, Needs(attention=EVERY))
    for handle in handles:
        handle.remove()
    assert set(trace.attention) == EVERY == shape_of(model).attention
    logits = torch.nn.functional.linear(trace.hidden, trace.head_weight, trace.head_bias)
    text = batch.documents >= 0
    near = 1e-4 if quantized else 1e-5  # kernels of the two ways differ by a rounding, which a grid may widen
    torch.testing.assert_close(logits[text], plain.logits[text], rtol=near, atol=near)
    for layer, inputs in trace.attention.items():
        kinds = getattr(model.config, "layer_types", None)
        window = WINDOW if kinds and kinds[layer - 1] == "sliding_attention" else None
        wanted = by_hand(inputs, batch, window, modules[layer].scaling)
        torch.testing.assert_close(given[layer][text].double(), wanted[text], rtol=1e-4, atol=1e-5)
        if quantized:  # what was caught is on the grid already
            rounded = model_rounding(modules[layer])
            for kept in (inputs.keys, inputs.values):
                torch.testing.assert_close(rounded(kept), kept, rtol=1e-3, atol=1e-4)
    assert configs(model) == before


def model_rounding(module: Any) -> Any:
    return module.kv_format.quantize


@torch.no_grad()
def test_only_wanted_layers_are_caught(make_packed):
    model = build("llama")
    trace = record(model, batch_of(make_packed), Needs(attention=frozenset({2})))
    assert set(trace.attention) == {2}
    assert trace.attention[2].queries.shape == (2, 6, 16, 8) and trace.attention[2].keys.shape == (
        2,
        2,
        16,
        8,
    )
    assert record(model, batch_of(make_packed)).attention == {}


@torch.no_grad()
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "kv4"])
def test_an_exception_leaves_the_model_as_it_was(quantized, make_packed, monkeypatch):
    model, batch = build("llama"), batch_of(make_packed)
    if quantized:
        quantize_kv(model, Integer(4, 8))
    before = configs(model)
    own = [getattr(layer.self_attn, "kv_attention", None) for layer in layers_of(model)]
    monkeypatch.setattr(layers_of(model)[2], "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(model, batch, Needs(attention=EVERY))
    assert configs(model) == before
    assert [getattr(layer.self_attn, "kv_attention", None) for layer in layers_of(model)] == own


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "kv4"])
@pytest.mark.usefixtures("whole_attention")
def test_gradients_are_the_same_under_checkpointing(how, quantized, make_packed):
    batch = batch_of(make_packed)
    batch = replace(batch, labels=torch.where(batch.documents >= 0, batch.input_ids, -100))
    teacher, loss = build("llama", initializer_range=0.2), AttentionRelations("all")
    loss.fit(shape_of(teacher), shape_of(teacher))
    with torch.no_grad():
        reference = record(teacher, batch, Needs(attention=EVERY)).attention
    found = []
    for checkpointed in (False, True):
        model = build("llama", how).train()
        if quantized:
            quantize_kv(model, Integer(4, 8))
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        before = configs(model)
        trace = record(model, batch, Needs(attention=EVERY, states=frozenset({1, 2})))
        total = trace.hidden.square().mean() + trace.states[2].square().mean()
        for layer in EVERY:
            total = total + loss.per_token(trace.attention[layer], reference[layer], batch).sum()
        total.backward()
        assert configs(model) == before
        found.append([p.grad for name, p in model.named_parameters() if "lm_head" not in name])
    assert all(g.abs().sum() > 0 for g in found[0])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_reentrant_checkpointing_is_refused(make_packed):
    model = build("llama").train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RazorError, match="Reentrant gradient checkpointing hides attention"):
        record(model, batch_of(make_packed), Needs(attention=EVERY))
    with torch.no_grad():  # where there is no gradient to miss
        assert set(record(model, batch_of(make_packed), Needs(attention=EVERY)).attention) == EVERY


def test_attention_that_cannot_be_reached_is_said(make_packed):
    config = CONFIG_MAPPING["mamba"](vocab_size=67, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(model)
    assert shape.attention == frozenset()
    with pytest.raises(RazorError, match="Layer 1 of MambaForCausalLM has no attention"):
        record(model, batch_of(make_packed), Needs(attention=frozenset({1})))
    with pytest.raises(RazorError, match="MambaForCausalLM has no attention whose inputs"):
        AttentionRelations().fit(shape, shape)


@torch.no_grad()
def test_attention_that_runs_twice_is_said(make_packed):
    model, batch = build("llama"), batch_of(make_packed)
    with (
        pytest.raises(RazorError, match="Layer 1 runs attention twice"),
        recorded_attention(model, layers_of(model), {1}),
    ):
        for _ in range(2):
            model(batch.input_ids)


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        model = build("qwen3")
    shape = shape_of(model)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads, shape.head_dim) == (3, 48, 6, 2, 16)
    assert shape.attention == EVERY and shape.routers == {}


@torch.no_grad()
def test_the_students_losses_are_felt_after_rounding(make_packed):
    """A model against itself with rounded keys and values: queries agree in the first layer, keys do not."""
    batch = batch_of(make_packed)
    batch = replace(batch, labels=torch.where(batch.documents >= 0, batch.input_ids, -100))
    teacher, student = build("llama"), build("llama")
    quantize_kv(student, Integer(4, 8))
    own, other = (record(m, batch, Needs(attention=frozenset({1}))).attention[1] for m in (student, teacher))
    for relations, same in ((["queries"], True), (["keys"], False), (["values"], False)):
        loss = AttentionRelations([1], relations)
        loss.fit(shape_of(student), shape_of(teacher))
        value = float(loss.per_token(own, other, batch).mean())
        assert math.isfinite(value) and (value == 0) == same
