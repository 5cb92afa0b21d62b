"""Teacher and student in one module: who is trained, who is saved, and what a step minimises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from razor.data.document import Document
from razor.data.packing import PackedRows, pack
from razor.data.steps import StepBatches
from razor.distill import AdaptiveFeatures, AttentionRelations, CrossEntropy, ForwardKL, Objective
from razor.train.loader import StepData
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings


def rows(documents: int = 12) -> PackedRows:
    chance = np.random.default_rng(0)
    sizes = chance.integers(4, 40, documents)
    made = [Document(chance.integers(0, 256, n).astype(np.int32), np.arange(n) >= n // 2) for n in sizes]
    return pack(made, 48, pad_id=256)


@pytest.fixture
def make_module(tiny_student: Callable[..., Any]) -> Callable[..., DistillModule]:
    def make(steps: int = 3, losses: dict[str, Any] | None = None, **values: Any) -> DistillModule:
        from razor.models import make_student

        _, plan, _, teacher = tiny_student()
        teacher = teacher.float()
        losses = losses or {"kld": ForwardKL(), "afd": AdaptiveFeatures(2)}
        objective = Objective(losses, dict.fromkeys(losses, 1.0))
        student = make_student(teacher, plan, torch.float32)
        settings = TrainSettings(accelerator="cpu", max_steps=steps, **values)
        return DistillModule(
            student, teacher if objective.needs_teacher else None, objective, settings, steps
        )

    return make


def fit(module: DistillModule, batches: StepBatches) -> None:
    L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=batches.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=batches.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    ).fit(module, StepData(batches))


def test_the_teacher_is_neither_trained_nor_saved(make_module: Callable[..., DistillModule]) -> None:
    module = make_module()
    assert {name.partition(".")[0] for name in module.state_dict()} == {"student"}
    owned = {id(parameter) for parameter in module.parameters()}
    assert not owned & {id(parameter) for parameter in module.teacher.parameters()}
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    teacher = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    student = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit(module, StepBatches(rows(), 3, 2))
    assert all(torch.equal(value, teacher[name]) for name, value in module.teacher.state_dict().items())
    assert not module.teacher.training
    changed = [
        name for name, value in module.student.state_dict().items() if not torch.equal(value, student[name])
    ]
    assert len(changed) == len([name for name, _ in module.student.named_parameters()])


def test_the_loss_falls_and_a_teacher_is_not_always_needed(make_module: Callable[..., DistillModule]) -> None:
    module = make_module(steps=20, losses={"task": CrossEntropy()}, learning_rate=3e-3)
    assert module.teacher is None
    batch = StepBatches(rows(), 1, 2)[0]
    before, _ = module.loss(batch)
    fit(module, StepBatches(rows(), 20, 2))
    after, _ = module.loss(batch)
    assert float(after.detach()) < 0.9 * float(before.detach())


def test_annealed_formats_know_how_far_training_is(
    make_module: Callable[..., DistillModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr("razor.train.module.set_progress", lambda model, progress: seen.append(progress))
    fit(make_module(steps=4), StepBatches(rows(), 4, 1, accumulate=2))
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_optimizer_follows_the_settings(make_module: Callable[..., DistillModule]) -> None:
    module = make_module(steps=10, learning_rate=2e-3, betas=[0.8, 0.9], warmup=0.2)
    made = module.configure_optimizers()
    assert [group["weight_decay"] for group in made["optimizer"].param_groups] == [0.01, 0.0]  # norms: none
    assert made["optimizer"].defaults["betas"] == (0.8, 0.9)
    assert made["lr_scheduler"]["interval"] == "step"
    assert [group["lr"] for group in made["optimizer"].param_groups] == pytest.approx([2e-3 / 3] * 2)


def test_parts_are_named_and_weighted(make_module: Callable[..., DistillModule]) -> None:
    module = make_module()
    loss, parts = module.loss(StepBatches(rows(), 1, 2)[0])
    statistics = {"kld/token_std", "kld/token_max"}
    assert set(parts) == {"loss/kld", "loss/afd", "afd/layer_0", "afd/layer_1"} | statistics
    assert float(loss.detach()) == pytest.approx(parts["loss/kld"] + parts["loss/afd"], rel=1e-5)


def gradient(module: DistillModule, batches: StepBatches) -> torch.Tensor:
    """Gradient of the first optimizer step, as Lightning would accumulate it."""
    module.log_dict = module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.zero_grad(set_to_none=True)
    for index in range(batches.accumulate):
        (module.training_step(batches[index], index) / batches.accumulate).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.student.parameters()])


def test_accumulated_micro_batches_equal_one_large_batch(make_module: Callable[..., DistillModule]) -> None:
    """Though their documents are not equally many; the losses here choose nothing per micro-batch."""
    module = make_module(losses={"kld": ForwardKL(), "task": CrossEntropy()})
    small, large = StepBatches(rows(), 1, 1, accumulate=4), StepBatches(rows(), 1, 4)
    shares = [small[index].share for index in range(4)]
    assert len(set(shares)) > 1 and sum(shares) == pytest.approx(4)
    torch.testing.assert_close(gradient(module, small), gradient(module, large), rtol=1e-4, atol=1e-6)


def test_loader_starts_where_the_run_stands() -> None:
    data = StepData(StepBatches(rows(), 4, 1, accumulate=2))

    class At:
        global_step = 3

    data.trainer = At()  # type: ignore[assignment]
    found = list(data.train_dataloader())
    assert len(found) == 2
    assert torch.equal(found[0].input_ids, data.batches[6].input_ids)


@pytest.mark.parametrize("saving", ["gradient_checkpointing", "offload_activations"])
def test_memory_is_saved_without_another_gradient(
    make_module: Callable[..., DistillModule], saving: str
) -> None:
    """Weights, inputs, keys and values stay quantized in layers that run a second time."""
    losses = {"kld": ForwardKL(), "afd": AdaptiveFeatures(2), "attention": AttentionRelations()}
    batch, found = StepBatches(rows(), 1, 2)[0], {}
    for option in (False, True):
        module = make_module(losses=copy.deepcopy(losses), **{saving: option}).train()
        loss, _ = module.loss(batch)
        loss.backward()
        found[option] = loss, {name: p.grad for name, p in module.named_parameters()}
    assert torch.equal(found[True][0], found[False][0])
    for name, gradient in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
