"""Losses on layers between real models: a smaller student, its projection, every record at once, checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import razor
from razor.distill import (
    EAKLD,
    AdaptiveFeatures,
    AttentionRelations,
    FixedFeatures,
    KeyValues,
    Objective,
    RouterKL,
    RouterZ,
)
from razor.distiller import Distiller
from razor.errors import RazorError
from razor.models import record, shape_of
from razor.optimizer import parameter_groups
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

FIELDS = {
    "vocab_size": 67,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LARGE = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
INT4 = {"kind": "Integer", "width": 4, "group": 16}
RECIPE = {
    "name": "test",
    "compute_dtype": "float32",
    "quant": {"weights": INT4, "embedding": INT4, "activations": None, "kv_cache": {**INT4, "group": 8}},
}


def build(family: str = "llama", seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**(FIELDS | fields)))


def ids(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(1, 67, (rows, length), generator=torch.Generator().manual_seed(1))


def smaller(family: str = "qwen3") -> tuple[Any, Any, Objective]:
    """A quantized student of another family, narrower and with half the layers; its teacher; losses for them."""
    student = razor.quantize(build(family, 1, head_dim=8, **SMALL), RECIPE)
    losses = {
        "features": FixedFeatures([0, 2, -1], projection="linear"),
        "attention": AttentionRelations([-1]),
    }
    return student, build(**LARGE), Objective(losses, {"features": 1.0, "attention": 1.0})


def test_a_smaller_student_learns_features_and_relations():
    student, teacher, objective = smaller()
    distiller = Distiller(objective, student, teacher)
    optimizer = torch.optim.AdamW(parameter_groups(distiller.trained, 3e-3, 0.0))
    projection = objective.losses["features"].map
    assert any(p is projection for group in optimizer.param_groups for p in group["params"])
    first, found, before = projection.detach().clone(), [], teacher.state_dict()["lm_head.weight"].clone()
    for _ in range(40):
        loss, parts = distiller(input_ids=ids(), labels=ids())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(parts)
    for name in ("loss/features", "loss/attention"):
        assert found[-1][name] < 0.7 * found[0][name], name
    assert not torch.equal(projection, first) and torch.equal(teacher.state_dict()["lm_head.weight"], before)
    assert [found[0][f"features/layer_{i}"] for i in range(3)] == [0, 2, 6]


def test_a_smaller_student_without_a_projection_is_refused_before_anything_runs():
    student, teacher, _ = smaller()
    objective = Objective({"afd": AdaptiveFeatures()}, {"afd": 1.0})
    with pytest.raises(
        RazorError, match=r"The loss 'afd': hidden states of Qwen3.* 32 wide.*projection=linear"
    ):
        Distiller(objective, student, teacher)
    kv = Objective({"kv": KeyValues()}, {"kv": 1.0})
    with pytest.raises(RazorError, match="The loss 'kv': Qwen3ForCausalLM keeps 4 KV heads of 8"):
        Distiller(kv, student, teacher)


def test_the_projection_is_in_the_optimizer_and_the_checkpoint():
    student, teacher, objective = smaller()
    module = DistillModule(student, teacher, objective, TrainSettings(max_steps=4), 4)
    optimizer = module.configure_optimizers()["optimizer"]
    projection = objective.losses["features"].map
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(p is projection for p in held) == 1
    assert len(held) == 1 + sum(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        projection.mul_(2.0)  # learned something
    state = module.state_dict()
    again = smaller()
    other = DistillModule(*again, TrainSettings(max_steps=4), 4)
    other.load_state_dict(state)
    assert torch.equal(again[2].losses["features"].map, projection)
    assert not any("teacher" in name for name in state)
    plain = Objective({"e": EAKLD()}, {"e": 1.0})
    groups = parameter_groups(torch.nn.ModuleList([student, plain]), 1e-3, 0.1)
    assert groups == parameter_groups(student, 1e-3, 0.1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "gemma3_text", "mixtral", "qwen3_moe"])
def test_every_loss_at_once_with_and_without_checkpointing(family: str) -> None:
    shape = LARGE | {"num_hidden_layers": 3}
    if family == "gpt2":
        shape |= {"num_key_value_heads": 6}
    if family in ("mixtral", "qwen3_moe"):
        shape |= {
            "num_experts": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        }
    if family in ("qwen3", "qwen3_moe", "gemma3_text"):
        shape |= {"head_dim": 8}
    teacher = build(family, **shape)
    losses: dict[str, Any] = {
        "eakld": EAKLD(),
        "afd": AdaptiveFeatures(2),
        "attention": AttentionRelations("all"),
        "kv": KeyValues(),
    }
    if shape_of(teacher).routers:
        losses |= {"router": RouterKL(), "z": RouterZ()}
    quantized = razor.quantize(copy.deepcopy(teacher), RECIPE)
    found = []
    for checkpointed in (False, True):
        student = copy.deepcopy(quantized).train()
        if checkpointed:
            student.activation_checkpointing_enable({"use_reentrant": False})
        distiller = Distiller(Objective(losses, dict.fromkeys(losses, 0.5)), student, teacher)
        names = [m.config._attn_implementation for m in student.modules() if hasattr(m, "config")]
        torch.manual_seed(0)
        loss, parts = distiller(input_ids=ids(), labels=ids())
        loss.backward()
        assert [m.config._attn_implementation for m in student.modules() if hasattr(m, "config")] == names
        assert {f"loss/{name}" for name in losses} <= set(parts)
        assert all(parts[f"loss/{name}"] > 0 for name in losses)
        found.append((parts, [p.grad for p in student.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for plain, again in zip(found[0][1], found[1][1], strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_the_teachers_other_states_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the student runs, the teacher's trace holds just what is compared."""
    import gc
    import weakref

    from razor.distiller import distiller as module

    teacher = build(**LARGE)
    student = razor.quantize(copy.deepcopy(teacher), RECIPE)
    distiller = Distiller(Objective({"afd": AdaptiveFeatures(2)}, {"afd": 1.0}), student, teacher)
    alive: dict[int, Any] = {}

    def watched(model: Any, batch: Any, needs: Any = None) -> Any:
        if model is student:
            gc.collect()
            held.extend(index for index, reference in alive.items() if reference() is not None)
        trace = record(model, batch, needs)
        if model is teacher:
            alive.update({index: weakref.ref(state) for index, state in trace.states.items()})
        return trace

    held: list[int] = []
    monkeypatch.setattr(module, "record", watched)
    _, parts = distiller(input_ids=ids(), labels=ids())
    chosen = {int(parts[f"afd/layer_{rank}"]) for rank in range(2)}
    assert len(alive) == 7 and set(held) - {6} == chosen - {6}  # the last one is the input of the head, too
