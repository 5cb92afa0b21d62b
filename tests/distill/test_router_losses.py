from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from razor.distill import Objective, RouterKL, RouterZ, Shape, Trace
from razor.errors import RazorError

LENGTHS, EXPERTS = ((9, 4), (6,)), 5


def shape(layers: int = 3, routers: dict[int, int] | None = None, name: str = "Tiny") -> Shape:
    return Shape(name, layers, 24, 4, 2, 6, routers={1: EXPERTS, 3: EXPERTS} if routers is None else routers)


def logits(seed: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 14, EXPERTS, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_kl_is_the_divergence_of_the_choices(make_batch, dtype):
    batch, own, other = make_batch(LENGTHS), logits(1, dtype), logits(2, dtype)
    wanted = [
        kl_divergence(Categorical(logits=other[b, t].double()), Categorical(logits=own[b, t].double()))
        for b, t in batch.valid.nonzero().tolist()
    ]
    found = RouterKL().per_token(own, other, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)
    assert (
        not RouterKL()
        .per_token(own, own + 7, batch)
        .abs()
        .gt(1e-1 if dtype == torch.bfloat16 else 1e-6)
        .any()
    )


def test_router_z_is_the_square_of_the_logsumexp(make_batch):
    batch, own = make_batch(LENGTHS), logits(1)
    wanted = [
        math.log(sum(math.exp(x) for x in own[b, t].double().tolist())) ** 2
        for b, t in batch.valid.nonzero().tolist()
    ]
    torch.testing.assert_close(
        RouterZ().per_token(own, own, batch), torch.tensor(wanted), rtol=1e-5, atol=1e-6
    )
    large = RouterZ().per_token(logits(1, scale=1e4), own, batch)
    assert large.isfinite().all() and large.max() > 1e7


@pytest.mark.parametrize("loss", [RouterKL(), RouterZ()])
def test_gradients_are_checked(make_batch, loss):
    batch, own, other = make_batch(((4,), (3,))), logits(1, torch.float64), logits(2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss.per_token(x, other, batch), own.requires_grad_())


def test_the_z_loss_needs_no_teacher(make_batch):
    batch = make_batch(LENGTHS)
    objective = Objective({"z": RouterZ()}, {"z": 0.5})
    assert not objective.needs_teacher
    objective.fit(shape(), None)
    seen = objective.observe(None, batch)
    assert seen.needs.routers == {1, 3} and not objective.teacher_needs().routers
    routers = {1: logits(1).requires_grad_(), 3: logits(2).requires_grad_()}
    trace = Trace(torch.randn(2, 14, 4), torch.randn(7, 4), routers=routers)
    total, parts = objective(trace, None, batch, seen)
    total.backward()
    weights = batch.token_weights()
    wanted = (
        sum(float((RouterZ().per_token(r, r, batch) * weights).detach().sum()) for r in routers.values()) / 2
    )
    assert parts["z"] == pytest.approx(wanted, rel=1e-5) and float(total.detach()) == pytest.approx(
        wanted / 2
    )
    assert all((r.grad.abs().sum(-1) > 0).equal(batch.valid) for r in routers.values())


def test_the_z_loss_counts_the_students_layers_though_there_is_a_teacher():
    loss = RouterZ([-1])
    loss.fit(shape(3), shape(6, {1: 4}))
    assert loss.teacher_layers() == {3} and loss.counterpart(3) == 3


def test_no_valid_token(make_batch):
    batch = make_batch([[2, 1], [3]], prompt=5)
    assert RouterKL().per_token(logits(1), logits(2), batch).shape == (0,)
    assert RouterZ().per_token(logits(1), logits(2), batch).shape == (0,)


@pytest.mark.parametrize(
    ("loss", "student", "words"),
    [
        (
            RouterKL(),
            shape(routers={}, name="Dense"),
            "is compared with layer 1 of Dense, which has no router",
        ),
        (RouterKL(), shape(routers={1: 5, 3: 4}), "layer 3: Tiny has 4 experts, Tiny 5"),
        (RouterKL([2]), shape(), "layer 2 of Tiny has no router.*Layers that do: 1, 3"),
        (RouterZ(), shape(routers={}, name="Dense"), "Dense has no router whose logits can be recorded"),
    ],
)
def test_what_is_wrong_is_said(loss, student, words):
    with pytest.raises(RazorError, match=words):
        loss.fit(student, shape())


def test_layers_of_another_number():
    loss = RouterKL()
    loss.fit(shape(2, {1: EXPERTS, 2: EXPERTS}), shape(4, {2: EXPERTS, 4: EXPERTS}))
    assert {layer: loss.counterpart(layer) for layer in loss.teacher_layers()} == {2: 1, 4: 2}
