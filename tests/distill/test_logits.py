"""Every formula against torch.distributions in float64, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from razor.distill import EAKLD, CrossEntropy, ForwardKL, ReverseKL
from razor.distill.logits import entropy
from razor.errors import RazorError

N, V = 6, 11


def logits(seed: int, scale: float = 2.0, rows: int = N) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def of(x: Tensor) -> Categorical:
    return Categorical(logits=x)


LABELS = torch.arange(N) % V
ORACLES = {
    "ce": (CrossEntropy(), lambda q, p: -of(q).log_prob(LABELS)),
    "kld": (ForwardKL(), lambda q, p: kl_divergence(of(p), of(q))),
    "rkld": (ReverseKL(), lambda q, p: kl_divergence(of(q), of(p))),
    "eakld": (EAKLD(), lambda q, p: 0.3 * kl_divergence(of(q), of(p)) + 0.7 * kl_divergence(of(p), of(q))),
}
FACTS = {"gamma": 0.3}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
def test_formulas_agree_with_an_independent_computation(seed, scale):
    q, p = logits(seed, scale), logits(seed + 1, 2.0)
    for loss, oracle in ORACLES.values():
        found = loss.per_token(q.log_softmax(-1), p.log_softmax(-1), LABELS, FACTS)
        assert found.shape == (N,)
        torch.testing.assert_close(found, oracle(q, p), rtol=1e-9, atol=1e-12)
        in_fp32 = loss.per_token(q.float().log_softmax(-1), p.float().log_softmax(-1), LABELS, FACTS)
        torch.testing.assert_close(in_fp32.double(), oracle(q, p), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_agree_with_finite_differences(name):
    loss, p = ORACLES[name][0], logits(1)[:3].log_softmax(-1)
    q = logits(0)[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss.per_token(x.log_softmax(-1), p, LABELS[:3], FACTS), (q,))


@pytest.mark.parametrize("name", ["kld", "rkld", "eakld"])
def test_a_perfect_student_has_no_loss_and_no_gradient(name):
    q = logits(0).requires_grad_()
    value = ORACLES[name][0].per_token(q.log_softmax(-1), q.detach().log_softmax(-1), LABELS, FACTS)
    assert (value == 0).all()
    value.sum().backward()
    assert q.grad.abs().max() < 1e-15


@pytest.mark.parametrize("name", ["ce", "kld", "eakld"])
@pytest.mark.parametrize("wrong", [30.0, 200.0, 1e4])
def test_a_confidently_wrong_student_still_learns(name, wrong):
    """The true token at probability e^-wrong: its gradient must be of size one, not cut off by a clamp."""
    q = torch.zeros(1, V)
    q[0, 1] = wrong
    q.requires_grad_()
    p = torch.full((1, V), -40.0)
    p[0, 0] = 0
    value = ORACLES[name][0].per_token(
        q.log_softmax(-1), p.log_softmax(-1), torch.tensor([0]), {"gamma": 0.1}
    )
    assert value.isfinite().all() and value > 0.5 * wrong
    value.sum().backward()
    assert q.grad[0, 0] < -0.85 and q.grad.isfinite().all()


def test_reverse_kl_still_learns_from_a_confidently_wrong_student():
    q = torch.zeros(1, V)
    q[0, 1] = 8.0
    q.requires_grad_()
    p = torch.full((1, V), -200.0)
    p[0, 0] = 0
    ReverseKL().per_token(q.log_softmax(-1), p.log_softmax(-1), torch.tensor([0]), {}).sum().backward()
    assert q.grad[0, 1] > 0.05 and q.grad[0, 0] < -0.05


def test_entropy():
    x = logits(3)
    torch.testing.assert_close(entropy(x.log_softmax(-1)), of(x).entropy())
    assert float(entropy(torch.zeros(1, 16).log_softmax(-1))) == pytest.approx(math.log(16))


def gamma(entropies: list[float], weights: list[float] | None = None, **options) -> float:
    e = torch.tensor(entropies)
    w = torch.full_like(e, 1 / len(entropies)) if weights is None else torch.tensor(weights)
    return EAKLD(**options).observe(e, w)["gamma"]


def test_gamma_follows_its_formula():
    ceiling = math.log(16)
    assert gamma([0.0, 0.0]) == 1  # certain: reverse KL
    assert gamma([ceiling, ceiling]) == pytest.approx(0, abs=1e-6)  # uniform over k: forward KL
    assert gamma([9.0, 9.0]) == 0
    assert gamma([1.0, 0.5]) == pytest.approx(1 - 0.75 / ceiling)
    assert gamma([1.0, 0.5], [0.9, 0.1]) == pytest.approx(1 - 0.95 / ceiling)
    assert gamma([1.0, 0.5], k=4) == pytest.approx(1 - 0.75 / math.log(4))


def test_where_the_cap_sits():
    entropies, ceiling = [0.2, 9.0], math.log(16)
    assert gamma(entropies, cap="batch") == 0  # the mean of 4.6 lies above the ceiling
    assert gamma(entropies, cap="token") == pytest.approx(1 - (0.2 + ceiling) / 2 / ceiling)
    assert gamma([0.2, 1.0], cap="token") == gamma([0.2, 1.0], cap="batch")


def test_gamma_of_nothing_is_a_number():
    assert EAKLD().observe(torch.zeros(0), torch.zeros(0))["gamma"] == 1


@pytest.mark.parametrize("k", [1, 0, -3])
def test_bad_k(k):
    with pytest.raises(RazorError, match=f"k is '{k}'.*at least 2"):
        EAKLD(k=k)


def test_bad_cap():
    with pytest.raises(RazorError, match=r"'tokens'. Choices: batch, token"):
        EAKLD(cap="tokens")


def test_only_cross_entropy_needs_no_teacher():
    assert not CrossEntropy().needs_teacher
    assert ForwardKL().needs_teacher and ReverseKL().needs_teacher and EAKLD().needs_teacher
    assert EAKLD().needs_entropy and not ForwardKL().needs_entropy
