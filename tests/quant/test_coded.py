"""The stored model computes what the trained one computed, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from razor.cli import build, composed, model_source
from razor.models import make_student, quantize_kv
from razor.quant import (
    CodedEmbedding,
    CodedLinear,
    CodedWeight,
    Integer,
    Placement,
    Plan,
    RowMix,
    Ternary,
    encoded,
    packed_state,
    quantize_modules,
    swap_in_coded,
)

TOKENS = torch.randint(0, 259, (2, 24), generator=torch.Generator().manual_seed(0))


def student_of(*overrides: str, compute: torch.dtype) -> tuple[Any, Plan, Any]:
    config = composed("size", ["model=tiny_llama", *overrides])
    source = model_source(config)
    plan = build(config.quant).plan(source.skeleton())
    student = make_student(source.load(torch.bfloat16), plan, compute)
    with torch.no_grad():  # as training would: latents that no 16-bit type holds
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return student.eval(), plan, source


def coded_of(student: Any, plan: Plan, source: Any, compute: torch.dtype, keep: bool = True) -> Any:
    model = source.load(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # nothing of it may be left
    swap_in_coded(model, plan, compute, "decoded" if keep else "packed")
    unfilled = model.load_state_dict(packed_state(student, plan), assign=True, strict=False)
    assert not unfilled.unexpected_keys
    assert all(
        name.startswith("lm_head.coded.") for name in unfilled.missing_keys
    )  # tied: held by the embedding
    if plan.kv_cache is not None:
        quantize_kv(model, plan.kv_cache)
    return model.eval()


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("tied", ["true", "false"], ids=["tied", "untied"])
@pytest.mark.parametrize("bias", ["true", "false"], ids=["bias", "no_bias"])
def test_coded_logits_are_the_students(compute, tied, bias):
    student, plan, source = student_of(
        "quant=mixed_2p79",
        f"model.architecture.tie_word_embeddings={tied}",
        f"+model.architecture.attention_bias={bias}",
        compute=compute,
    )
    for keep in (True, False):
        coded = coded_of(student, plan, source, compute, keep)
        assert not any(isinstance(module, (nn.Linear, nn.Embedding)) for module in coded.modules())
        shared = coded.lm_head.coded is coded.model.embed_tokens.coded
        assert shared == (tied == "true")
        with torch.no_grad():
            expected = student(TOKENS).logits
            for _ in range(2):
                found = coded(TOKENS).logits
                assert found.dtype == expected.dtype and torch.equal(found, expected)
        kept = [m._decoded is not None for m in coded.modules() if isinstance(m, CodedWeight)]
        assert all(kept) if keep else not any(kept)


@pytest.mark.parametrize("quant", ["w1p58", "w4", "mixed_1p88", "w16"])
def test_every_width(quant):
    student, plan, source = student_of(f"quant={quant}", compute=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(
            coded_of(student, plan, source, torch.bfloat16)(TOKENS).logits, student(TOKENS).logits
        )


def test_a_coded_state_is_the_packed_state():
    student, plan, source = student_of("quant=mixed_2p79", compute=torch.bfloat16)
    state = packed_state(student, plan)
    again = coded_of(student, plan, source, torch.bfloat16).state_dict()
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert all("." not in name.partition(".coded.")[2] for name in state)


def test_a_tied_weight_is_stored_once():
    student, plan, _ = student_of(
        "quant=w4", "model.architecture.tie_word_embeddings=true", compute=torch.bfloat16
    )
    names = [name for name in packed_state(student, plan) if ".coded.codes" in name]
    assert "model.embed_tokens.coded.codes" in names and "lm_head.coded.codes" not in names
    assert len(names) == 1 + 7 * 4


def small(seed: int) -> tuple[nn.Module, Plan]:
    torch.manual_seed(seed)
    plan = Plan(
        {
            "0": Placement(Integer(4, 8)),
            "1": Placement(RowMix(Integer(4, 8), Ternary(8), 0.5), Integer(8, 8)),
        }
    )
    return quantize_modules(
        nn.Sequential(nn.Embedding(10, 16, padding_idx=0), nn.Linear(16, 6)), plan, torch.float32
    ), plan


def test_layers_keep_the_shape_of_what_they_replace():
    coded = nn.Sequential(nn.Embedding(10, 16, padding_idx=0), nn.Linear(16, 6))
    swap_in_coded(coded, small(0)[1], torch.float32)
    embedding, linear = coded
    assert isinstance(embedding, CodedEmbedding) and isinstance(linear, CodedLinear)
    assert (embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx) == (10, 16, 0)
    assert (linear.in_features, linear.out_features) == (16, 6)


@pytest.mark.parametrize("assign", [True, False])
def test_other_weights_loaded_later_are_used(assign):
    coded = nn.Sequential(nn.Embedding(10, 16, padding_idx=0), nn.Linear(16, 6))
    swap_in_coded(coded, small(0)[1], torch.float32)
    for seed in (0, 1):
        student, plan = small(seed)
        coded.load_state_dict(packed_state(student, plan), assign=assign)
        assert torch.equal(coded(torch.arange(10)), student(torch.arange(10)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_change_of_dtype_leaves_what_is_stored(dtype):
    student, plan = small(0)
    coded = nn.Sequential(nn.Embedding(10, 16, padding_idx=0), nn.Linear(16, 6))
    swap_in_coded(coded, plan, torch.float32)
    coded.load_state_dict(packed_state(student, plan))
    coded.to(dtype)
    assert all(
        t.dtype in (torch.uint8, torch.float16) for name, t in coded.state_dict().items() if ".coded." in name
    )
    assert torch.equal(coded[1].coded(torch.float32), student[1].quantized_weight(torch.float32))
    assert all(tensor.is_meta for tensor in coded.to("meta").state_dict().values())
    assert not any(tensor.is_meta for tensor in coded.to_empty(device="cpu").state_dict().values())


def test_what_is_encoded_is_each_weight_once():
    student, plan, _ = student_of(
        "quant=mixed_2p79", "model.architecture.tie_word_embeddings=true", compute=torch.bfloat16
    )
    found = {site.name: (site, format, codes) for site, format, codes in encoded(student, plan)}
    assert set(found) == set(plan.modules) - {"lm_head"}
    for name, (site, format, codes) in found.items():
        assert format.spec() == plan.modules[name].weights.spec()
        assert torch.equal(codes.values, format.encode(site.weight).values) and codes.shape == site.shape


def test_unpacked_codes_are_the_encoded_ones():
    for format in (RowMix(Integer(4, 8), Ternary(8), 0.3), Ternary(8), Integer(3, 8)):
        x = torch.randn(5, 24)
        codes = format.encode(x)
        weight = CodedWeight(format, (5, 24), format.pack(codes))
        assert torch.equal(weight.unpacked().values, codes.values)
        assert torch.equal(weight(torch.bfloat16), format.quantize(x, torch.bfloat16))
        assert weight(torch.float32).dtype == torch.float32


def test_a_weight_that_inference_decoded_serves_a_gradient():
    weight = torch.randn(8, 16)
    linear = nn.Linear(16, 8, bias=False)
    linear.weight.data = weight
    model = nn.Sequential(linear)
    plan = Plan({"0": Placement(Integer(4, 16))})
    quantize_modules(model, plan, torch.float32)
    swap_in_coded(model, plan, torch.float32)
    x = torch.randn(2, 16)
    with torch.inference_mode():
        model(x)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


def test_an_input_is_remembered_until_it_changes() -> None:
    from razor.quant.coded import SMALL, SharedInput

    shared, x = SharedInput(Integer(8, 8)), torch.randn(1, 16)
    with torch.no_grad():
        first = shared(x)
        assert shared(x) is first and torch.equal(first, shared.format(x))
        x.add_(1)
        assert torch.equal(shared(x), shared.format(x)) and not torch.equal(shared(x), first)
        assert torch.equal(shared(2 * x), shared.format(2 * x))
        large = torch.randn(SMALL // 8 + 1, 8)
        assert shared(large) is not shared(large)
    x.requires_grad_()
    shared(x).sum().backward()  # a result without gradient is not handed out here
    assert x.grad is not None
    with torch.inference_mode():
        ones = torch.ones(1, 8)
        assert torch.equal(shared(ones), shared.format(ones))
