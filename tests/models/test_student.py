from __future__ import annotations

import copy
import math

import pytest
import torch

from razor.errors import RazorError
from razor.models import make_student
from razor.quant import Plan, QuantEmbedding, QuantLinear


def test_the_teacher_is_left_as_it_was(make_pair):
    _, teacher, plan = make_pair("quant=mixed_2p79", compute=torch.bfloat16)
    teacher = copy.deepcopy(teacher)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    kinds = [type(module) for module in teacher.modules()]
    student = make_student(teacher, plan, torch.bfloat16)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    after = dict(teacher.named_parameters())
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.dtype == torch.bfloat16 for p in after.values())
    assert kinds == [type(module) for module in teacher.modules()]
    assert teacher.config._attn_implementation == "sdpa" and not teacher.training


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen3"])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_a_student_trains_fp32_latents_and_computes_in_its_dtype(make_pair, model, compute):
    _, teacher, plan = make_pair(f"model={model}", "quant=w1p58", compute=torch.bfloat16)
    student = make_student(teacher, plan, compute)
    assert student.training and all(
        p.requires_grad and p.dtype == torch.float32 for p in student.parameters()
    )
    assert student(torch.arange(8)[None]).logits.dtype == compute
    names = {name for name, m in student.named_modules() if isinstance(m, (QuantLinear, QuantEmbedding))}
    assert names == set(plan.modules) and len(names) == 7 * 4 + 2
    tied = student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert tied == (model == "tiny_qwen3")
    assert student.num_parameters() == teacher.num_parameters()


@torch.no_grad()
def test_rotary_frequencies_stay_exact(make_pair):
    student, _, _ = make_pair("quant=w4", compute=torch.bfloat16)
    wanted = 1.0 / 10000 ** (torch.arange(0, 16, 2).float() / 16)
    torch.testing.assert_close(student.model.rotary_emb.inv_freq, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("option", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_logits_that_are_changed_after_the_head_are_refused(make_pair, option):
    _, teacher, plan = make_pair("quant=w4")
    teacher = copy.deepcopy(teacher)
    setattr(teacher.config, option, 30.0)
    with pytest.raises(RazorError, match=rf"changes its logits after the head \({option}=30\.0\)"):
        make_student(teacher, plan, torch.float32)
    setattr(teacher.config, option, 1.0)
    make_student(teacher, plan, torch.float32)


def test_a_plan_for_another_model_is_refused(make_pair):
    _, teacher, plan = make_pair("quant=w4")
    shorter = Plan({name: place for name, place in plan.modules.items() if ".3." not in name}, plan.kv_cache)
    with pytest.raises(RazorError, match=r"says nothing about 7 modules, first 'model\.layers\.3\."):
        make_student(teacher, shorter, torch.float32)


def test_a_few_steps_bring_the_student_nearer(make_pair, make_packed):
    """Distillation in a nutshell: record, compare, step."""
    from razor.distill import ForwardKL, Objective
    from razor.models import record

    _, teacher, plan = make_pair("quant=mixed_2p79")
    student, batch = make_student(teacher, plan, torch.float32), make_packed(((16,), (16,)))
    batch.labels[:, :-1] = batch.input_ids[:, 1:]
    objective, losses = Objective({"kld": ForwardKL()}, {"kld": 1.0}), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    with torch.no_grad():
        reference = record(teacher, batch)
    for _ in range(25):
        loss, parts = objective(record(student, batch), reference, batch, objective.observe(reference, batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(parts["kld"])
    assert math.isfinite(losses[-1]) and losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@torch.no_grad()
def test_compiled_by_inductor_it_gives_the_same_logits(make_pair):
    """In fp32; in bf16 inductor keeps fp32 between the operations it fuses, in any model."""
    student, _, _ = make_pair("quant=mixed_2p79", compute=torch.float32)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(student)(tokens).logits, student(tokens).logits)
