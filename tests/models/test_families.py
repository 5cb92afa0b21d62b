"""Every family of models, tiny and random: planned whole, trained, recorded, packed and read back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from razor.cli import build, composed
from razor.distill import ForwardKL, Needs, Objective
from razor.errors import RazorError
from razor.export.packed import WEIGHTS, load_packed, save_packed
from razor.models import RandomModel, layers_of, make_student, record
from razor.quant import Integer, Plan, measure, packed_state, quantize_modules, sites

LAYERS, TOKENS = 2, 24
COMMON = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
TIED = {"tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16, **TIED},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        **TIED,
    },
    "mobilellm": {
        "model_type": "llama",
        "hidden_size": 160,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        **TIED,
    },
    "gemma3": {  # a width whose root, the scale of its embedding, is not exact in 16 bits
        "model_type": "gemma3_text",
        "hidden_size": 96,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "phi": {"model_type": "phi", "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "gpt2": {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
}
IS_TIED = {"qwen3", "smollm2", "mobilellm", "gemma3", "gpt2"}
SITES_PER_LAYER = {"phi": 6, "gpt2": 4, "qwen3_moe": 4 + 2}
TABLES = {"gpt2": 2}  # tokens and positions
QUANTS = ["w4", "mixed_2p79"]


def source_of(family: str) -> RandomModel:
    return RandomModel(family, COMMON | FAMILIES[family], seed=1)


def plan_of(family: str, quant: str, **changes: Any) -> Plan:
    words = ["model=tiny_llama", "model.group=32", "model.kv_group=16", f"quant={quant}"]
    recipe = build(composed("size", words).quant)
    for name, value in changes.items():
        setattr(recipe, name, value)
    return recipe.plan(source_of(family).skeleton())  # type: ignore[no-any-return]


def moved(student: Any) -> Any:
    """As after some training: latents that no 16-bit type holds."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student


def pair(family: str, quant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Plan]:
    teacher, plan = source_of(family).load(dtype), plan_of(family, quant)
    return moved(make_student(teacher, plan, dtype)), teacher, plan


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(0, 256, (rows, TOKENS), generator=torch.Generator().manual_seed(2))


def names_of_layers(model: Any) -> set[str]:
    return {name for name, site in sites(model).items() if site.kind != "other"}


@pytest.fixture(scope="module", params=[(f, q) for f in FAMILIES for q in QUANTS], ids=lambda p: "-".join(p))
def made(request: pytest.FixtureRequest) -> tuple[str, Any, Any, Plan]:
    """(family, student, teacher, plan); look, don't change."""
    return request.param[0], *pair(*request.param)


def test_the_plan_covers_everything(made):
    family, student, teacher, plan = made
    layers = SITES_PER_LAYER.get(family, 7) * LAYERS
    assert (
        set(plan.modules) == names_of_layers(teacher)
        and len(plan.modules) == layers + TABLES.get(family, 1) + 1
    )
    assert set(sites(student)) == set(sites(teacher))
    size = measure(source_of(family).skeleton(), plan)
    # what is left to the 16-bit rest has one dimension, or is a router
    rest = {
        name: p for name, p in teacher.named_parameters() if p.ndim == 1 or name.endswith("mlp.gate.weight")
    }
    assert size.rest.parameters == sum(p.numel() for p in rest.values())
    assert size.total.parameters == teacher.num_parameters() == student.num_parameters()
    assert size.code_bits == pytest.approx({"w4": 4, "mixed_2p79": 2.79}[plan_label(plan)])
    stored = packed_state(student, plan)
    assert sum(t.numel() * t.itemsize for t in stored.values()) == size.total.bytes_disk


def plan_label(plan: Plan) -> str:
    kinds = {type(place.weights).__name__ for place in plan.modules.values()}
    return "mixed_2p79" if "RowMix" in kinds else "w4"


def test_a_tied_head_is_the_embedding_and_quantized_once(made):
    family, student, _, plan = made
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()
    assert (head.weight is embedding.weight) == (family in IS_TIED)
    assert (head.weights is embedding.weights) == (family in IS_TIED)
    codes = [
        name for name in packed_state(student, plan) if name.endswith(".coded.codes") and "lm_head" in name
    ]
    assert bool(codes) == (family not in IS_TIED)
    student.tie_weights()  # lm-eval and others call it; it must not undo anything
    assert (student.get_output_embeddings().weight is embedding.weight) == (family in IS_TIED)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(made):
    family, student, _, _ = made
    ids = tokens()
    before = student.eval()(ids, use_cache=False).logits
    ids[:, -1] = (ids[:, -1] + 7) % 256
    after = student(ids, use_cache=False).logits
    assert not torch.equal(before[:, -1], after[:, -1])
    if family == "qwen3_moe":  # experts take their tokens together, so sums may run in another order
        torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(before[:, :-1], after[:, :-1])


@torch.no_grad()
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_recorded_states_are_those_that_transformers_lists(made, make_packed, which):
    model = made[1 if which == "student" else 2].eval()
    batch = make_packed()
    trace = record(model, batch, Needs(states=frozenset(range(LAYERS + 1))))
    listed = model(
        batch.input_ids, position_ids=batch.position_ids, use_cache=False, output_hidden_states=True
    )
    assert len(layers_of(model)) == LAYERS and set(trace.states) == set(range(LAYERS + 1))
    for index, state in enumerate(listed.hidden_states):
        torch.testing.assert_close(trace.states[index], state, rtol=1e-4, atol=1e-4)
    logits = torch.nn.functional.linear(trace.hidden, trace.head_weight, trace.head_bias)
    torch.testing.assert_close(logits, listed.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_training_step_moves_every_weight(family, make_packed):
    student, teacher, _ = pair(family, "mixed_2p79")
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    batch = make_packed(((16,), (16,)))
    batch.labels[:, :-1] = batch.input_ids[:, 1:]
    with torch.no_grad():
        reference = record(teacher, batch)
    objective = Objective({"kld": ForwardKL()}, {"kld": 1.0})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    losses = []
    for _ in range(2):
        loss, _ = objective(record(student, batch), reference, batch, objective.observe(reference, batch))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    still = {name for name, p in student.named_parameters() if torch.equal(p, before[name])}
    # a key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding
    assert not {name for name in still if "k_proj" not in name} and losses[1] != losses[0]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(family):
    student, _, _ = pair(family, "mixed_2p79")
    found = []
    for _ in range(2):
        student.train()(tokens(), use_cache=False).logits.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in student.named_parameters()})
        student.zero_grad()
        student.gradient_checkpointing_enable()
    assert any(layer.gradient_checkpointing for layer in layers_of(student))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@torch.no_grad()
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_packed_and_read_back_the_logits_are_the_students(family, quant, dtype, tmp_path):
    student, teacher, plan = pair(family, quant, dtype)
    expected = student.eval()(tokens(), use_cache=False).logits
    assert not torch.equal(teacher(tokens(), use_cache=False).logits, expected)
    save_packed(student, plan, source_of(family).tokenizer(), dtype, tmp_path / "packed")
    for hold in ("decoded", "packed"):
        reloaded, _ = load_packed(tmp_path / "packed", hold)
        assert torch.equal(reloaded(tokens(), use_cache=False).logits, expected)
    assert packed_bytes_are_small(tmp_path / "packed", teacher)


def packed_bytes_are_small(folder: Path, teacher: Any) -> bool:
    return (folder / WEIGHTS).stat().st_size < teacher.num_parameters()  # less than half of 16 bits each


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen3_moe"])
def test_a_student_made_on_meta_takes_a_trained_state(family):
    student, _, plan = pair(family, "mixed_2p79")
    empty = copy.deepcopy(source_of(family).load(torch.float32)).to("meta")
    quantize_modules(empty, plan, torch.float32).to_empty(device="cpu")
    for name, buffer in source_of(family).load(torch.float32).named_buffers():  # what no state_dict holds
        empty.get_buffer(name).copy_(buffer)
    empty.load_state_dict(student.state_dict())
    plain = quantize_modules(source_of(family).load(torch.float32), plan, torch.float32)
    plain.load_state_dict(student.state_dict())
    ids = tokens()
    assert torch.equal(empty.eval()(ids, use_cache=False).logits, plain.eval()(ids, use_cache=False).logits)
    twin = copy.deepcopy(student).eval()
    assert torch.equal(twin(ids, use_cache=False).logits, student.eval()(ids, use_cache=False).logits)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_it_gives_the_same_logits(family, dtype):
    """With a backend that computes as eager mode does; inductor keeps fp32 between operations that it fuses."""
    torch._dynamo.reset()
    student = pair(family, "mixed_2p79", dtype)[0].eval()
    expected = student(tokens(), use_cache=False).logits
    assert torch.equal(
        torch.compile(student, backend="aot_eager")(tokens(), use_cache=False).logits, expected
    )


def test_routers_are_left_alone_unless_somebody_names_them():
    from razor.recipe.override import Override

    alone = plan_of("qwen3_moe", "w4")
    assert not [name for name in alone.modules if name.endswith("mlp.gate")]
    broad = plan_of("qwen3_moe", "w4", overrides={"*.mlp.*": Override(weights=Integer(8, 32))})
    assert set(broad.modules) == set(alone.modules)
    assert {p.weights.label for n, p in broad.modules.items() if ".mlp." in n} == {"8"}
    named = plan_of("qwen3_moe", "w4", overrides={"*.mlp.gate": Override(weights=Integer(8, 32))})
    assert [name for name in named.modules if name.endswith("mlp.gate")] == [
        f"model.layers.{i}.mlp.gate" for i in (0, 1)
    ]
    teacher = source_of("qwen3_moe").load(torch.float32)
    student = make_student(teacher, named, torch.float32)
    router = student.model.layers[0].mlp.gate
    assert torch.equal(router.weight, Integer(8, 32).quantize(teacher.model.layers[0].mlp.gate.weight))
    left_out = plan_of("qwen3_moe", "w4", exclude=["*.mlp.gate", "*.experts.down_proj"])
    assert {p.weights.label for n, p in left_out.modules.items() if n.endswith("experts.down_proj")} == {"16"}


def test_a_head_that_caps_its_logits_is_refused():
    teacher = source_of("gemma3").load(torch.float32)
    teacher.config.final_logit_softcapping = 30.0
    with pytest.raises(RazorError, match="final_logit_softcapping"):
        make_student(teacher, plan_of("gemma3", "w4"), torch.float32)
