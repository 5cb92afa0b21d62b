"""Logits of 16-bit models are exact where a loss can tell: products whose rounding is asked for once more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from razor.distill import EAKLD, JSD, ForwardKL, ReverseKL, TopKKL, TotalVariation
from razor.distill.chunked import chunked_loss
from razor.distill.formula import Formula
from razor.distill.head import SHARE, Head, is_felt
from razor.distill.logits import forward_kl
from razor.distill.teacher_logits import TeacherLogits


def pair(distance: float, bias: bool, dtype: torch.dtype, own_head: bool) -> tuple[Head, Head]:
    """Teacher and student with logits of a language model's size, some distance apart."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight, hidden = random(3000, 64) * 0.6, random(150, 64)
    moved = hidden + distance * random(150, 64)
    other = weight * (1 + 0.1 * distance) if own_head else weight
    shared = random(3000).to(dtype) if bias else None
    return (
        Head(moved.to(dtype), other.to(dtype), shared),
        Head(hidden.to(dtype), weight.to(dtype), shared),
    )


def exact(head: Head) -> Tensor:
    bias = 0 if head.bias is None else head.bias.double()
    return (head.hidden.double() @ head.weight.double().T + bias).log_softmax(-1)


KINDS = {
    "forward": ForwardKL(),
    "reverse": ReverseKL(),
    "eakld": EAKLD(gamma=0.4),
    "jsd": JSD(),
    "tv": TotalVariation(),
    "topk": TopKKL(50),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("distance", [1.0, 0.1, 0.01, 0.003])
def test_losses_of_bf16_models_are_exact(name, distance, bias, own_head, dtype):
    """Within 1 % of float64 on the same states and weights, down to a KL of 1e-4 (the smallest distance)."""
    loss, (student, teacher) = KINDS[name], pair(distance, bias, dtype, own_head)
    wanted = float(loss(exact(student), exact(teacher), None, {}).mean())
    if name in ("forward", "reverse") and distance == 0.003 and not own_head:
        assert 0.5e-4 < wanted < 2e-4
    weights, one = torch.full((150,), 1 / 150), torch.ones(1)
    values = Formula(lambda s, t, _: loss(s, t, None, {})[None])
    total, _ = chunked_loss(student, TeacherLogits(teacher), values, one, weights)
    assert float(total) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("autocast", [False, True])
def test_states_of_another_dtype_than_the_head(autocast):
    """As autocast leaves them: the product is one of the weight's dtype."""
    states, weight = torch.randn(6, 8).bfloat16(), torch.randn(30, 8)
    weights, values = torch.full((6,), 1 / 6), Formula(lambda s, t, _: forward_kl(s, t)[None])
    teacher = TeacherLogits(Head(torch.randn(6, 8), weight))
    gradients = []
    for hidden in (states, states.float()):
        given = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            total, _ = chunked_loss(Head(*given), teacher, values, torch.ones(1), weights)
        gradients.append(torch.autograd.grad(total, given))
    assert gradients[0][0].dtype == torch.bfloat16
    assert torch.equal(gradients[0][0], gradients[1][0].bfloat16())
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("half", ["student", "teacher"])
def test_one_of_them_in_fp32(half):
    student, teacher = pair(0.003, False, torch.bfloat16, False)
    if half == "student":
        teacher = Head(teacher.hidden.float(), teacher.weight.float())
    else:
        student = Head(student.hidden.float(), student.weight.float())
    wanted = float(forward_kl(exact(student), exact(teacher)).mean())
    weights, one = torch.full((150,), 1 / 150), torch.ones(1)
    values = Formula(lambda s, t, _: forward_kl(s, t)[None])
    total, _ = chunked_loss(student, TeacherLogits(teacher), values, one, weights)
    assert wanted < 2e-4 and float(total) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("distance, products", [(3.0, 1), (0.1, 2)])
def test_a_product_is_saved_where_rounding_is_not_felt(monkeypatch, distance, products):
    """The teacher's rounded logits are made exact only for a student near enough to tell."""
    student, teacher = pair(distance, False, torch.bfloat16, False)
    made: list[int] = []
    beyond = Head.beyond
    monkeypatch.setattr(Head, "beyond", lambda *a: made.append(1) or beyond(*a))
    weights, one = torch.full((150,), 1 / 150), torch.ones(1)
    chunked_loss(student, TeacherLogits(teacher), Formula(lambda s, t, _: (s * t)[:, 0][None]), one, weights)
    assert len(made) == products


def test_rounding_is_felt_as_much_as_it_changes_a_kl():
    student, teacher = pair(0.3, False, torch.bfloat16, True)
    base = teacher.product(slice(None))
    rounded, right, other = base.double().log_softmax(-1), exact(teacher), exact(student)
    change = float(forward_kl(right, rounded).mean()) / float(forward_kl(other, right).mean())
    assert 1e-5 < change < SHARE
    assert is_felt(teacher, student, base, student.beyond(base, slice(None))) is False
    near = Head((0.999 * teacher.hidden + 0.001 * student.hidden).bfloat16(), teacher.weight)
    assert is_felt(teacher, near, base, near.beyond(base, slice(None)))


def test_a_student_that_is_its_teacher_is_exactly_at_zero():
    head = pair(0.0, True, torch.bfloat16, False)[1]
    weights, one = torch.full((150,), 1 / 150), torch.ones(1)
    for loss in KINDS.values():
        total, values = chunked_loss(
            head,
            TeacherLogits(head),
            Formula(lambda s, t, _, loss=loss: loss(s, t, None, {})[None]),
            one,
            weights,
        )
        assert float(total) == pytest.approx(0, abs=1e-6) and float(values.abs().max()) < 1e-6
