"""Keys and values are rounded wherever attention runs, and each token's on its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from razor.distill import Batch, Needs
from razor.errors import RazorError
from razor.models import quantize_kv, record
from razor.models.attention import SUFFIX, quantized_kv_attention
from razor.quant import Format, Integer, RowMix, Ternary

LAYERS, VOCABULARY = 4, 259
COARSE = Integer(3, 16)  # so coarse that its effect stands out, and rounding noise of fp32 flips no code


@pytest.fixture(scope="module")
def only_kv(make_pair):
    """A student in which nothing but keys and values is quantized."""
    return make_pair("quant=w16", "quant.activations=none", kv=COARSE)


@pytest.fixture(scope="module")
def whole(make_pair):
    """A student with everything: W2.79-A8-KV8."""
    return make_pair("quant=mixed_2p79")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 256, (2, 14), generator=torch.Generator().manual_seed(3))


def with_attention(student: Any, implementation: str) -> Any:
    """A copy of the student that runs another attention below the rounding."""
    student = copy.deepcopy(student)
    rounding = student.model.layers[0].self_attn.kv_format
    student.config._attn_implementation = implementation
    quantize_kv(student, rounding)
    assert student.config._attn_implementation == implementation + SUFFIX
    return student


def tiny(kind: str, **fields: Any) -> Any:
    """A model on the meta device."""
    config = CONFIG_MAPPING[kind](**({"vocab_size": 9, "pad_token_id": 0} | fields))
    with torch.device("meta"):
        if config.is_encoder_decoder:
            return AutoModel.from_config(config)
        return AutoModelForCausalLM.from_config(config)


@contextmanager
def roundings(format: Format) -> Iterator[list[torch.Size]]:
    """Shapes that `format` rounded meanwhile."""
    seen: list[torch.Size] = []
    handle = format.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def test_the_teacher_forced_pass_rounds_keys_and_values_once_a_layer(only_kv, tokens):
    student, teacher, plan = only_kv
    with roundings(plan.kv_cache) as seen:
        logits = student(tokens).logits
    assert seen == [torch.Size((2, 2, 14, 16))] * (2 * LAYERS)  # [B, KV heads, T, head_dim]
    assert (logits - teacher(tokens).logits).abs().max() > 0.02


@torch.no_grad()
def test_the_rounding_is_after_the_rotary_embedding(only_kv, tokens):
    """The same attention written out by hand gives the same first layer."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    student, _, plan = only_kv
    attention, caught = student.model.layers[0].self_attn, {}

    def catch(_, arguments, options, output):
        caught.update(options, out=output[0])

    handle = attention.register_forward_hook(catch, with_kwargs=True)
    student(tokens)
    handle.remove()
    x = caught["hidden_states"]
    q, k, v = (
        project(x).view(2, 14, -1, 16).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *caught["position_embeddings"])
    k, v = (plan.kv_cache.quantize(t).repeat_interleave(2, dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) / 16**0.5
    scores += torch.full((14, 14), float("-inf")).triu(1)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 14, -1)
    torch.testing.assert_close(attention.o_proj(mixed), caught["out"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rounding_can_be_turned_off(make_pair, tokens):
    student, teacher, plan = make_pair("quant=w16", "quant.activations=none", "quant.kv_cache=none")
    assert plan.kv_cache is None and student.config._attn_implementation == "sdpa"
    assert (student(tokens).logits - teacher(tokens).logits).abs().max() < 0.05  # bf16 weights only


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(whole, tokens):
    student = whole[0]
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 77) % 256
    before, after = student(tokens).logits, student(changed).logits
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9:], after[:, 9:])


@torch.no_grad()
def test_a_neighbour_in_the_batch_changes_nothing(whole, tokens):
    student, changed = whole[0], tokens.clone()
    changed[1] = 5
    assert torch.equal(student(tokens).logits[0], student(changed).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["only_kv", "whole"])
def test_what_padding_holds_does_not_matter(request, name, tokens):
    student = request.getfixturevalue(name)[0]
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    logits = []
    for filler in (0, 200):
        padded = torch.where(mask.bool(), tokens, filler)
        logits.append(student(padded, attention_mask=mask).logits)
    assert torch.equal(logits[0][0, 5:], logits[1][0, 5:]) and torch.equal(logits[0][1], logits[1][1])


@torch.no_grad()
def test_left_padding_gives_the_logits_of_the_bare_text(only_kv, tokens):
    student, teacher, plan = only_kv
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with roundings(plan.kv_cache) as seen:
        padded = student(tokens, attention_mask=mask, position_ids=positions).logits[0, 5:]
    assert len(seen) == 2 * LAYERS
    bare, effect = student(tokens[:1, 5:]).logits[0], teacher(tokens[:1, 5:]).logits[0]
    torch.testing.assert_close(padded, bare, rtol=1e-3, atol=1e-4)
    assert (bare - effect).abs().max() > 0.02  # a lost rounding or mask would show


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.")  # newer name: activation_...
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.usefixtures("whole_attention")
def test_gradient_checkpointing_changes_nothing(make_pair, make_packed, reentrant, implementation):
    """Not even the gradients; a peer loses its KV quantization there."""
    results = []
    for checkpointing in (False, True):
        student = with_attention(make_pair("quant=mixed_2p79")[0], implementation)
        student.train()
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with roundings(student.model.layers[0].self_attn.kv_format) as seen:
            trace = record(student, make_packed(), Needs(states=frozenset({2})))
            loss = (trace.hidden @ trace.head_weight.T).square().mean() + trace.states[2].square().mean()
            loss.backward()
        assert len(seen) == 2 * LAYERS * (2 if checkpointing else 1)  # recomputed in the backward pass
        results.append((loss.detach(), [p.grad for p in student.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        # reentrant checkpointing adds up the gradients of a recorded state in another order
        assert (a - b).abs().max() <= (1e-5 if reentrant else 0) * a.abs().max()


@torch.no_grad()
def test_token_by_token_equals_one_pass(only_kv, tokens):
    student, teacher, _ = only_kv
    cache, steps = None, []
    for t in range(tokens.shape[1]):
        out = student(tokens[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    whole = student(tokens).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-3, atol=1e-4)
    assert (whole - teacher(tokens).logits).abs().max() > 0.02


@torch.no_grad()
def test_generation_on_a_plain_cache_rounds_too(only_kv, tokens):
    student, teacher, plan = only_kv
    new = 8
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    with roundings(plan.kv_cache) as seen:
        text = student.generate(tokens, past_key_values=DynamicCache(config=student.config), **options)
    assert text.shape == (2, 14 + new) and len(seen) == 2 * LAYERS * new
    assert seen[0][2] == 14  # prefill is rounded like the rest
    logits = student(text[:, :-1]).logits[:, 13:]
    logits[..., student.generation_config.eos_token_id] = -torch.inf  # min_new_tokens forbids the end
    assert torch.equal(logits.argmax(-1), text[:, 14:])
    assert not torch.equal(teacher.generate(tokens, **options), text)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(whole, make_packed, implementation):
    student, batch = with_attention(whole[0], implementation), make_packed()
    changed = batch.input_ids.clone()
    changed[0, :9] = 33  # all of the first document
    other = Batch(changed, batch.labels, batch.position_ids, batch.documents)
    before, after = record(student, batch).hidden, record(student, other).hidden
    assert torch.equal(before[0, 9:14], after[0, 9:14]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :9], after[0, :9])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_packed_document_has_the_states_it_has_alone(only_kv, make_packed, implementation):
    student, batch = with_attention(only_kv[0], implementation), make_packed()
    packed = record(student, batch).hidden[0, 9:14]
    part = slice(9, 14)
    alone = Batch(
        batch.input_ids[:1, part],
        batch.labels[:1, part],
        batch.position_ids[:1, part],
        batch.documents[:1, part],
    )
    torch.testing.assert_close(packed, record(student, alone).hidden[0], rtol=1e-3, atol=1e-4)


def test_values_get_their_gradient_straight_through(only_kv, tokens):
    student = only_kv[0]
    student.zero_grad()
    student(tokens).logits.square().mean().backward()
    for layer in student.model.layers:
        for project in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            assert project.weight.grad.abs().sum() > 0
    student.zero_grad()


@torch.no_grad()
def test_eager_attention_stays_eager(only_kv, tokens):
    """It alone gives the attention weights away; here they are those of the rounded keys."""
    student = with_attention(only_kv[0], "eager")
    torch.testing.assert_close(student(tokens).logits, only_kv[0](tokens).logits, rtol=1e-3, atol=1e-4)
    weights = student(tokens, output_attentions=True).attentions
    assert len(weights) == LAYERS and weights[0].shape == (2, 4, 14, 14)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 14))


@torch.no_grad()
def test_flash_attention_gets_rounded_keys_and_its_own_name(only_kv, tokens, monkeypatch):
    """As far as can be seen without a GPU: registered, and handed over to by the name that loads the kernels."""
    for version in (2, 3, 4):
        name = f"flash_attention_{version}{SUFFIX}"
        assert ALL_ATTENTION_FUNCTIONS[name] is quantized_kv_attention
        assert ALL_MASK_ATTENTION_FUNCTIONS[name] is flash_attention_mask
    student, calls = with_attention(only_kv[0], "flash_attention_2"), []

    def kernel(query, key, value, mask, **options):  # [B, T, heads, head_dim]
        calls.append((mask, options, key))
        repeat = query.shape[2] // key.shape[2]
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=options["softmax_scale"])
        return mixed.transpose(1, 2)

    monkeypatch.setattr("transformers.integrations.flash_attention._flash_attention_forward", kernel)
    logits = student(tokens).logits
    torch.testing.assert_close(logits, only_kv[0](tokens).logits, rtol=1e-3, atol=1e-4)
    assert len(calls) == LAYERS
    mask, options, key = calls[0]
    assert mask is None and options["attn_implementation"] == "flash_attention_2"
    assert options["is_causal"] and options["layer_idx"] == 0
    torch.testing.assert_close(key, COARSE.quantize(key))  # rounding what is rounded changes nothing
    padding = torch.ones(2, 14, dtype=torch.long)
    padding[0, :5] = 0
    student(tokens, attention_mask=padding)
    assert torch.equal(calls[-1][0].long(), padding)  # flash attention wants the padding mask as it came


def test_a_changed_attention_is_no_silent_end_of_the_rounding(only_kv, tokens):
    student = copy.deepcopy(only_kv[0])
    student.set_attn_implementation("sdpa")
    with pytest.raises(RazorError, match=r"set to 'sdpa'.*call quantize_kv"):
        student(tokens)


@pytest.mark.parametrize(
    ("format", "problem"),
    [
        (Ternary(12), r"Group 12 does not divide the 16 inputs of 'model\.layers\.0\.self_attn \(KV"),
        (Integer(8, "tensor"), r"Integer\(width=8, group=tensor.*\) has scales that tokens would share"),
        (RowMix(Integer(8, 16), Integer(4, 16), 0.5), r"RowMix\(.*\) has scales that tokens would share"),
    ],
    ids=["group", "tensor", "rows"],
)
def test_formats_that_cannot_hold_a_token_are_said(make_pair, format, problem):
    teacher = make_pair("quant=w4")[1]
    with pytest.raises(RazorError, match=problem):
        quantize_kv(teacher, format)
    assert teacher.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, Format) for module in teacher.modules())


@pytest.mark.parametrize(
    ("kind", "fields", "problem"),
    [
        ("rwkv", {"hidden_size": 8, "num_hidden_layers": 1}, "RwkvForCausalLM has no attention layer"),
        (
            "bloom",
            {"hidden_size": 8, "n_layer": 1, "n_head": 2},
            r"self_attention' \(BloomAttention\) does not call",
        ),
        ("t5", {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2}, "T5Model has an encoder"),
        (
            "deepseek_v3",
            {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
            "caches a compressed form",
        ),
    ],
)
def test_models_that_cannot_be_reached_are_said(kind, fields, problem):
    model = tiny(kind, **fields)
    with pytest.raises(RazorError, match=problem):
        quantize_kv(model, Integer(8, 4))
    assert not any(isinstance(module, Format) for module in nn.Module.modules(model))


def test_attention_that_cannot_be_rounded_is_said(only_kv):
    student = copy.deepcopy(only_kv[0])
    student.config._attn_implementation = "flex_attention"
    with pytest.raises(RazorError, match=r"as 'flex_attention'.*Choices: eager, sdpa, flash_attention_2"):
        quantize_kv(student, COARSE)
