"""Sizes against the paper's table and against the tensors that are really stored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from razor.cli import build, composed, model_source
from razor.quant import (
    Float16,
    Integer,
    LearnedScale,
    Placement,
    Plan,
    Size,
    Ternary,
    measure,
    packed_state,
    quantize_modules,
)
from razor.quant.size import sizes_by_parameter, stored_parameters

QWEN3_0P6B = 596_049_920


def sized(*overrides: str):
    config = composed("size", list(overrides))
    model = model_source(config).skeleton()
    assert all(parameter.is_meta for parameter in model.parameters())
    return measure(model, build(config.quant).plan(model))


@pytest.mark.parametrize(
    ("quant", "ratio", "code_bits"),
    [("w4", 3.94, 4), ("mixed_2p79", 5.05, 2.79), ("mixed_1p88", 6.40, 1.8825), ("w1p58", 7.03, 1.58)],
)
def test_the_ratios_of_the_paper(quant, ratio, code_bits):
    size = sized("model=qwen3_0p6b", f"quant={quant}")
    assert size.total.parameters == QWEN3_0P6B
    assert round(size.total.ratio_paper, 2) == ratio
    assert size.code_bits == pytest.approx(code_bits)
    assert size.total.bits_per_weight == pytest.approx(16 / size.total.ratio_paper)
    assert size.total.ratio_disk == pytest.approx(2 * QWEN3_0P6B / size.total.bytes_disk)
    assert size.embedding.parameters == 151_936 * 1024


def test_uncompressed_is_one_to_one():
    size = sized("model=qwen3_0p6b", "quant=w16")
    assert size.total.ratio_paper == size.total.ratio_disk == 1
    assert size.total.bytes_disk == 2 * QWEN3_0P6B


def test_a_head_of_its_own_counts():
    size = sized("model=qwen3_0p6b", "quant=w4", "model.architecture.tie_word_embeddings=false")
    assert size.total.parameters == QWEN3_0P6B + 151_936 * 1024
    assert size.embedding.parameters == 2 * 151_936 * 1024


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("quant", ["mixed_2p79", "w1p58", "w16"])
def test_bytes_are_those_of_the_stored_tensors(quant, tied, bias):
    overrides = ["model=tiny_llama", f"quant={quant}", f"model.architecture.tie_word_embeddings={tied}"]
    config = composed("size", [*overrides, f"+model.architecture.attention_bias={bias}"])
    source = model_source(config)
    plan = build(config.quant).plan(source.skeleton())
    model = source.load(torch.float32)
    size = measure(source.skeleton(), plan)
    assert size == measure(model, plan)
    assert size.total.parameters == sum(p.numel() for p in model.parameters())
    assert (size.rest.parameters > 9 * 64) == (bias == "true")  # norms and, perhaps, biases
    quantize_modules(model, plan, torch.bfloat16)
    stored = packed_state(model, plan)
    assert size.total.bytes_disk == sum(t.numel() * t.element_size() for t in stored.values())


def test_parts_add_up():
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 16), nn.LayerNorm(16))
    plan = Plan({"0": Placement(Integer(4, 8)), "1": Placement(Ternary(8))}, rest=Float16())
    size = measure(net, plan)
    assert size.embedding == Size(80, 320, 160, 10 * (4 + 2))
    assert size.linear == Size(128, 128 * 1.58, 256, 16 * (2 + 2))
    assert size.rest == Size(48, 48 * 16, 0, 96)
    assert size.total == size.linear + size.embedding + size.rest
    assert size.total.bits_per_weight == size.total.bits / 256


def test_sizes_by_parameter_name_every_one_once():
    config = composed("size", ["model=tiny_qwen3", "quant=mixed_2p79"])
    model = model_source(config).skeleton()
    plan = build(config.quant).plan(model)
    sizes = sizes_by_parameter(model, plan)
    assert list(sizes) == [name for name, _ in model.named_parameters()]  # of tied ones the first
    total = measure(model, plan).total
    assert sum(sizes.values(), Size()).bytes_disk == total.bytes_disk
    # 32 rows of 64 in int4 and as many in trits, a scale every 32
    size = sizes["model.layers.1.self_attn.q_proj.weight"]
    assert size == Size(4096, 2048 * 4 + 2048 * 1.58, 64 * 2 * 16, 32 * 32 + 32 * 13 + 64 * 4)
    assert sizes["model.norm.weight"] == Size(64, 64 * 16, 0, 128)
    tied = {p.name: p.aliases for p in stored_parameters(model, plan) if p.aliases}
    assert tied == {"model.embed_tokens.weight": ("lm_head.weight",)}


def test_a_convolution_is_measured_as_the_matrix_it_is():
    net = nn.Sequential(nn.Conv2d(3, 8, 4))
    plan = Plan({"0": Placement(Ternary(16))})
    (weight, bias) = stored_parameters(net, plan)
    assert (weight.shape, weight.matrix, weight.part) == ((8, 3, 4, 4), (8, 48), "linear")
    assert weight.size == Size(384, 384 * 1.58, 24 * 16, 8 * 10 + 48) and bias.part == "rest"


def test_a_model_without_layers_has_no_width():
    size = measure(nn.LayerNorm(8), Plan({}))
    assert math.isnan(size.code_bits) and size.total.bytes_disk == 32


def test_learned_scales_of_a_quantized_model_are_counted_once():
    model = nn.Sequential(nn.Linear(64, 64))
    plan = Plan({"0": Placement(LearnedScale(Ternary(64)))})
    before = measure(model, plan)
    quantize_modules(model, plan, torch.float32)
    assert any("log_scale" in name for name, _ in model.named_parameters())
    assert measure(model, plan) == before
