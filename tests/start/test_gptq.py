"""A start of whole tiny models: nearer to the teacher than plain rounding, packed as it is, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.distill import Needs
from razor.errors import RazorError
from razor.evals.held_out import score_held_out
from razor.export.packed import check_packed, save_packed
from razor.models import make_student, record
from razor.quant import LearnedScale, Plan, RowMix, encoded
from razor.recipe import PlanFile
from razor.start import GPTQ, holding
from razor.start.layer_inputs import LayerInputs
from razor.start.linears import formats_of, linears_of
from tests.models.conftest import packed_batch

LENGTHS = ((30, 34, 20), (60, 36), (90,))


def text(seeds: range = range(4)) -> list[Any]:
    return [packed_batch(LENGTHS, 96, seed) for seed in seeds]


def scored(seed: int = 99) -> list[Any]:
    batch = packed_batch(LENGTHS, 96, seed)
    batch.labels = torch.where(batch.documents >= 0, batch.input_ids.roll(-1, 1), batch.labels)
    return [batch]


def pair(*words: str, hold: bool = True) -> tuple[Any, Any, Plan, Any]:
    """(student, teacher, plan, source) of a tiny model."""
    words = words if any(word.startswith("model=") for word in words) else ("model=tiny_llama", *words)
    config = cli.composed("size", list(words))
    source, recipe = cli.model_source(config), cli.build(config.quant)
    plan = (holding(recipe) if hold else recipe).plan(source.skeleton())
    teacher = source.load(torch.float32)
    return make_student(teacher, plan, torch.float32), teacher, plan, source


@pytest.mark.parametrize(
    "words",
    [
        ("quant=mixed_2p79",),
        ("quant=w1p58", "model=tiny_qwen3"),
        ("quant=w2", "quant.overrides={*.v_proj:{weights:{kind:Affine,width:4,group:16}}}"),
    ],
    ids=lambda words: "_".join(words).replace("quant=", "")[:20],
)
def test_nearer_to_the_teacher(words: tuple[str, ...]) -> None:
    student, teacher, _, _ = pair(*words)
    before = score_held_out(student, teacher, scored())
    done = GPTQ()(student, text())
    assert done.layers == 7 * len(student.model.layers) and student.training
    assert done.tokens == sum(int((batch.documents >= 0).sum()) for batch in text())
    assert done.error < 0.8 * done.error_plain
    assert score_held_out(student, teacher, scored()).kl < before.kl


def test_aiming_at_the_original_comes_nearer_to_it() -> None:
    kl = []
    for follow in (0.0, 1.0):
        student, teacher, _, _ = pair("quant=w1p58")
        before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
        GPTQ(follow=follow)(student, text(range(8)), teacher)
        assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
        kl.append(score_held_out(student, teacher, scored()).kl)
    assert kl[1] < kl[0]
    alone, _, _, _ = pair("quant=w1p58")
    GPTQ(follow=1.0)(alone, text(range(8)))  # there is nothing to aim at
    assert score_held_out(alone, teacher, scored()).kl == kl[0]


def test_what_is_aimed_at_is_what_the_original_has_there() -> None:
    student, teacher, _, _ = pair("quant=w4")
    own, other = LayerInputs(student.eval(), text()), LayerInputs(teacher.eval(), text())
    name = "model.layers.0.mlp.gate_proj"
    seen: list[torch.Tensor] = []
    handle = teacher.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for batch in text():
            record(teacher, batch)
    handle.remove()
    kept = other.kept([name])[name]
    expected = [x[batch.documents >= 0] for x, batch in zip(seen, text(), strict=True)]
    assert all(torch.equal(*both) for both in zip(kept, expected, strict=True)) and other.index == 1
    gram, drift = own.products(name, kept)
    nothing = own.products(name, [torch.zeros_like(x) for x in kept])[1]
    assert drift is not None and nothing is not None
    assert torch.allclose(nothing, -gram, rtol=1e-4, atol=1e-3)
    assert drift.abs().max() < 0.2 * gram.abs().max()  # the student is near


def test_it_is_packed_as_it_is(tmp_path: Path) -> None:
    """The file has the codes that the start left, and the embedding is rounded plainly as before."""
    student, _, plan, source = pair("quant=mixed_2p79", "quant.weights.rows=error")
    plain = {site.name: codes for site, _, codes in encoded(student, plan)}
    GPTQ()(student, text())
    save_packed(student, plan, source.tokenizer(), torch.float32, tmp_path / "small")
    check_packed(student, tmp_path / "small", torch.arange(64).unsqueeze(0))
    for site, _, codes in encoded(student, plan):
        same = torch.equal(codes.values, plain[site.name].values)
        assert same == (site.name in ("model.embed_tokens", "lm_head")), site.name


def test_inputs_are_those_of_the_finished_layers() -> None:
    """What goes into the layers is, bit for bit, what a pass through the finished student has there."""
    student, _, _, _ = pair("quant=w4")
    GPTQ()(student, text())
    inputs = LayerInputs(student.eval(), text())
    for layer in range(1, len(inputs.blocks)):
        inputs.advance()
        for number, batch in enumerate(text()):
            with torch.no_grad():
                states = record(student, batch, Needs(states=frozenset({layer}))).states
            assert torch.equal(inputs._states[number], states[layer])
    assert not any("forward" in block.__dict__ for block in inputs.blocks)


def test_layers_with_one_input_are_found() -> None:
    student, _, _, _ = pair("quant=w4")
    linears = linears_of(student, formats_of(student))[0]
    calls = LayerInputs(student.eval(), text()).calls({name: site.module for name, site in linears.items()})
    short = [[name.rpartition(".")[2] for name in names] for names in calls]
    assert short == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_the_gram_matrix_is_of_the_text_alone() -> None:
    student, _, _, _ = pair("quant=w4")
    name, site = next(iter(linears_of(student, formats_of(student))[0].items()))
    inputs = LayerInputs(student.eval(), text())
    gram, _ = inputs.products(name)
    expected = torch.zeros_like(gram)
    for batch in text():
        table, norm = student.model.embed_tokens, student.model.layers[0].input_layernorm
        x = site.module.quantized_input(norm(table(batch.input_ids)))[batch.documents >= 0]
        expected += 2 * x.T @ x
    assert torch.allclose(gram, expected.detach(), rtol=1e-4, atol=1e-4)


def test_holding_changes_no_bit_of_a_recipe() -> None:
    config = cli.composed("size", ["model=tiny_llama", "quant=matrix_2p79"])
    recipe, skeleton = cli.build(config.quant), cli.model_source(config).skeleton()
    kept = holding(recipe, 3.0)
    plan = kept.plan(skeleton)
    weights = plan.modules["model.layers.0.mlp.up_proj"].weights
    assert isinstance(weights, LearnedScale) and weights.lr_multiplier == 3.0
    assert not isinstance(plan.modules["model.embed_tokens"].weights, LearnedScale)
    assert holding(kept).to_dict() == kept.to_dict()
    shape = (64, 64)
    for name, place in recipe.plan(skeleton).modules.items():
        assert plan.modules[name].weights.bits(shape) == place.weights.bits(shape)
    assert kept.w_a_kv == recipe.w_a_kv == "W2.79-A8-KV8"
    fixed = holding(PlanFile("fixed", recipe.plan(skeleton)))
    assert isinstance(fixed.plan(skeleton).modules["model.layers.0.mlp.up_proj"].weights, LearnedScale)


def test_what_is_wrong_is_said() -> None:
    for words, said in (
        ({"rows": 0}, "start.rows=0"),
        ({"follow": 1.5}, "start.follow=1.5 must lie in 0..1"),
        ({"refit": 1}, "start.refit"),
        ({"damping": 0.0}, "start.damping=0.0"),
        ({"block": 1.5}, "start.block"),
        ({"lr_multiplier": -1.0}, "start.lr_multiplier"),
    ):
        with pytest.raises(RazorError, match=said):
            GPTQ(**words)
    student, _, _, _ = pair("quant=w4", hold=False)
    with pytest.raises(RazorError, match=r"q_proj.*Integer.*does not keep scales"):
        GPTQ()(student, text())
    with pytest.raises(RazorError, match="needs text"):
        GPTQ()(pair("quant=w4")[0], [])
    with pytest.raises(RazorError, match="no linear layer of a decoder layer is quantized"):
        GPTQ()(pair("quant=w16")[0], text())


def test_stacked_experts_are_refused_by_their_shapes() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    words = ["model=tiny_llama", "model.group=16", "model.kv_group=16", "quant=w4"]
    plan = holding(cli.build(cli.composed("size", words).quant)).plan(model)
    with pytest.raises(RazorError, match=r"experts.*is of kind experts: start=none"):
        GPTQ().check(model, plan)


def test_a_plan_of_rows_mixed_by_error_keeps_its_rows() -> None:
    student, _, _, _ = pair("quant=mixed_2p79", "quant.weights.rows=error")
    before = {name: f.chosen.clone() for name, f in formats_of(student).items() if isinstance(f, RowMix)}
    GPTQ()(student, text(range(1)))
    after = {name: f.chosen for name, f in formats_of(student).items() if isinstance(f, RowMix)}
    assert before and all(torch.equal(before[name], after[name]) for name in before)


Command = Callable[..., Any]


def test_razor_quantize_packs_a_start(razor: Command, tmp_path: Path) -> None:
    words = ["model=tiny_llama", "quant=w1p58", "data.source.tokens=3000", "data.sequence_length=128"]
    out = tmp_path / "small"
    done = razor("quantize", *words, "data.held_out=4", "start=gptq", "start.rows=6", f"out={out}")
    assert done.code == 0, done.err
    assert "28 linear layers by gptq" in done.out and "read back with the same logits" in done.out
    assert (
        "does not keep scales"
        in razor(
            "quantize", *words, "quant.weights.group=tensor", "start=gptq", f"out={tmp_path / 'other'}"
        ).problem
    )
