"""The closed gradient of cross entropy and the KLs is that of autograd, whatever the mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from razor.distill import CAKLD, EAKLD, JSD, CrossEntropy, ForwardKL, ReverseKL, Targets, TopKKL
from razor.distill.formula import Formula, LossFormula

N, V = 5, 13
FACTS = {"eakld": {"gamma": 0.3}, "cakld": {"gamma": 0.8}}
CLOSED = {
    "ce": CrossEntropy(),
    "kld": ForwardKL(),
    "rkld": ReverseKL(),
    "eakld": EAKLD(),
    "each": EAKLD(gamma="token"),
    "fixed": EAKLD(gamma=0.6),
    "cakld": CAKLD(),
    "sure": CAKLD(gamma="token"),
}
OPEN = {"jsd": JSD(), "hot": ForwardKL(2.0), "topk": TopKKL(4)}


def random(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def labels_of(seed: int) -> Tensor:
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(seed))


def both(formula: LossFormula, logits: Tensor, teacher: Tensor | None, weights: Tensor) -> list[Any]:
    """(values, gradient) in closed form if there is one, and by autograd."""
    tokens = torch.rand(N, generator=torch.Generator().manual_seed(9), dtype=logits.dtype)
    copies = [None if teacher is None else teacher.clone() for _ in range(2)]
    own = formula.differentiate(logits.clone(), copies[0], slice(0, N), weights, tokens)
    return [own, Formula.differentiate(formula, logits.clone(), copies[1], slice(0, N), weights, tokens)]


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(st.sampled_from(sorted(CLOSED)), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_closed_is_autograd(names, seed, scale):
    losses = {name: CLOSED[name] for name in names}
    formula = LossFormula(losses, labels_of(seed), FACTS)
    weights = random(seed, len(names)).abs()
    teacher = random(seed + 1, N, V, scale=scale).log_softmax(-1)
    closed, auto = both(formula, random(seed + 2, N, V, scale=scale), teacher, weights)
    torch.testing.assert_close(closed[0], auto[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(closed[1], auto[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*CLOSED, *OPEN])
def test_which_losses_are_differentiated_in_closed_form(monkeypatch, name):
    loss = (CLOSED | OPEN)[name]
    asked = []
    monkeypatch.setattr(Formula, "differentiate", lambda *a: asked.append(name) or (None, None))
    formula = LossFormula({name: loss}, labels_of(0), {name: {"gamma": 0.3}})
    teacher = random(1, N, V).log_softmax(-1)
    formula.differentiate(random(0, N, V), teacher, slice(0, N), torch.ones(1), torch.ones(N))
    assert bool(asked) == (name in OPEN)


def targets(kind: str, seed: int) -> Targets:
    teacher = random(seed, N, V).softmax(-1)
    if kind == "sampled":
        ids = torch.stack(
            [torch.randperm(V, generator=torch.Generator().manual_seed(i))[:4] for i in range(N)]
        )
        values = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).expand(N, 4)
        tail = None
    else:
        top = teacher.topk(4)
        ids, values = top.indices, top.values.log()
        tail = (1 - top.values.sum(-1)).log()
    entropy = -(teacher * teacher.log()).sum(-1)
    return Targets(kind, ids, values, tail, entropy, teacher[:, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [["kld"], ["ce", "kld"]])
@pytest.mark.parametrize("kind", ["sampled", "topk"])
def test_cached_targets_in_closed_form(names, kind):
    losses = {name: CLOSED[name] for name in names}
    formula = LossFormula(losses, labels_of(3), {}, targets(kind, 4))
    closed, auto = both(formula, random(5, N, V), None, torch.tensor([0.5, 2.0][: len(names)]).double())
    torch.testing.assert_close(closed[0], auto[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(closed[1], auto[1], rtol=1e-9, atol=1e-11)


def test_targets_of_the_whole_vocabulary_are_the_teacher():
    """Top-k of everything: the same forward and reverse KL as from the distribution itself."""
    teacher = random(1, N, V).log_softmax(-1)
    ids = torch.arange(V).expand(N, V)
    whole = Targets("topk", ids, teacher, None, torch.zeros(N), torch.zeros(N))
    labels = labels_of(0)
    for loss in (ForwardKL(), ReverseKL(), JSD(), EAKLD(gamma=0.4)):
        cached = LossFormula({"x": loss}, labels, {}, whole)
        online = LossFormula({"x": loss}, labels, {})
        weights, tokens, logits = torch.ones(1).double(), torch.ones(N).double(), random(2, N, V)
        found = cached.differentiate(logits.clone(), None, slice(0, N), weights, tokens)
        wanted = online.differentiate(logits.clone(), teacher.clone(), slice(0, N), weights, tokens)
        torch.testing.assert_close(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1])
