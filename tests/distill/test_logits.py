"""Every formula against torch.distributions in float64, and its gradient against finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from razor.distill import (
    CAKLD,
    EAKLD,
    JSD,
    CrossEntropy,
    ForwardKL,
    LogitsLoss,
    ReverseKL,
    TeacherTokens,
    TopKKL,
    TotalVariation,
)
from razor.distill.logits import entropy
from razor.errors import RazorError
from razor.spec import kinds_of

N, V = 6, 11


def logits(seed: int, scale: float = 2.0, rows: int = N) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def of(x: Tensor) -> Categorical:
    return Categorical(logits=x)


LABELS = torch.arange(N) % V


def jsd(q: Tensor, p: Tensor, beta: float) -> Tensor:
    mixture = of((beta * p.softmax(-1) + (1 - beta) * q.softmax(-1)).log())
    return beta * kl_divergence(of(p), mixture) + (1 - beta) * kl_divergence(of(q), mixture)


def mixed(q: Tensor, p: Tensor, gamma: float | Tensor) -> Tensor:
    return gamma * kl_divergence(of(q), of(p)) + (1 - gamma) * kl_divergence(of(p), of(q))


def top(q: Tensor, p: Tensor, k: int, tail: bool) -> Tensor:
    """One row after the other, by sorting."""
    values = []
    for own, other in zip(of(q).logits, of(p).logits, strict=True):
        order = other.sort(descending=True).indices
        pair = []
        for x in (own, other):
            rest = [x[order[k:]].logsumexp(0)[None]] if tail else []
            pair.append(of(torch.cat([x[order[:k]], *rest])))
        values.append(kl_divergence(pair[1], pair[0]))
    return torch.stack(values)


def softened(oracle, t: float):
    return lambda q, p: t * t * oracle(q / t, p / t)


def token_gamma(p: Tensor) -> Tensor:
    return (1 - of(p).entropy() / math.log(16)).clamp(0, 1)


ORACLES = {
    "ce": (CrossEntropy(), lambda q, p: -of(q).log_prob(LABELS)),
    "kld": (ForwardKL(), lambda q, p: kl_divergence(of(p), of(q))),
    "kld_hot": (ForwardKL(temperature=3), softened(lambda q, p: kl_divergence(of(p), of(q)), 3)),
    "rkld": (ReverseKL(), lambda q, p: kl_divergence(of(q), of(p))),
    "rkld_cold": (ReverseKL(temperature=0.5), softened(lambda q, p: kl_divergence(of(q), of(p)), 0.5)),
    "jsd": (JSD(), lambda q, p: jsd(q, p, 0.5)),
    "jsd_near_forward": (JSD(0.1), lambda q, p: jsd(q, p, 0.1)),
    "tv": (TotalVariation(), lambda q, p: 0.5 * (of(q).probs - of(p).probs).abs().sum(-1)),
    "eakld": (EAKLD(), lambda q, p: mixed(q, p, 0.3)),
    "eakld_fixed": (EAKLD(gamma=0.6), lambda q, p: mixed(q, p, 0.6)),
    "eakld_token": (EAKLD(gamma="token"), lambda q, p: mixed(q, p, token_gamma(p))),
    "cakld": (CAKLD(), lambda q, p: mixed(q, p, 0.3)),
    "cakld_token": (CAKLD(gamma="token"), lambda q, p: mixed(q, p, of(p).log_prob(LABELS).exp())),
    "topk": (TopKKL(4), lambda q, p: top(q, p, 4, True)),
    "topk_without_tail": (TopKKL(4, tail=False), lambda q, p: top(q, p, 4, False)),
    "topk_of_all": (TopKKL(V + 3), lambda q, p: kl_divergence(of(p), of(q))),
}
FACTS = {"gamma": 0.3}
AGAINST_TEACHER = [name for name in ORACLES if name != "ce"]


def test_every_loss_has_an_oracle():
    shipped = {kind for kind in kinds_of(LogitsLoss).values() if kind.__module__.startswith("razor.")}
    assert shipped == {type(loss) for loss, _ in ORACLES.values()}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
def test_formulas_agree_with_an_independent_computation(seed, scale):
    q, p = logits(seed, scale), logits(seed + 1, 2.0)
    for name, (loss, oracle) in ORACLES.items():
        found = loss(q.log_softmax(-1), p.log_softmax(-1), LABELS, FACTS)
        assert found.shape == (N,), name
        torch.testing.assert_close(found, oracle(q, p), rtol=1e-9, atol=1e-11)
        in_fp32 = loss(q.float().log_softmax(-1), p.float().log_softmax(-1), LABELS, FACTS)
        torch.testing.assert_close(in_fp32.double(), oracle(q, p), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_agree_with_finite_differences(name):
    loss, p = ORACLES[name][0], logits(1)[:3].log_softmax(-1)
    q = logits(0)[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x.log_softmax(-1), p, LABELS[:3], FACTS), (q,))


@pytest.mark.parametrize("name", AGAINST_TEACHER)
def test_a_perfect_student_has_no_loss_and_no_gradient(name):
    q = logits(0).requires_grad_()
    value = ORACLES[name][0](q.log_softmax(-1), q.detach().log_softmax(-1), LABELS, FACTS)
    assert value.abs().max() < 1e-14
    value.sum().backward()
    assert q.grad.abs().max() < 1e-14


@pytest.mark.parametrize("name", ["ce", "kld", "eakld", "topk", "cakld"])
@pytest.mark.parametrize("wrong", [30.0, 200.0, 1e4])
def test_a_confidently_wrong_student_still_learns(name, wrong):
    """The true token at probability e^-wrong: its gradient must be of size one, not cut off by a clamp."""
    q = torch.zeros(1, V)
    q[0, 1] = wrong
    q.requires_grad_()
    p = torch.full((1, V), -40.0)
    p[0, 0] = 0
    value = ORACLES[name][0](q.log_softmax(-1), p.log_softmax(-1), torch.tensor([0]), {"gamma": 0.1})
    assert value.isfinite().all() and value > 0.5 * wrong
    value.sum().backward()
    assert q.grad[0, 0] < -0.85 and q.grad.isfinite().all()


@pytest.mark.parametrize("name", AGAINST_TEACHER)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_extreme_distributions_stay_finite(name, scale):
    q = (logits(4) * scale).float().requires_grad_()
    value = ORACLES[name][0](q.log_softmax(-1), (logits(5) * scale).float().log_softmax(-1), LABELS, FACTS)
    value.sum().backward()
    assert value.isfinite().all() and q.grad.isfinite().all() and (value > -1e-4).all()


def test_reverse_kl_still_learns_from_a_confidently_wrong_student():
    q = torch.zeros(1, V)
    q[0, 1] = 8.0
    q.requires_grad_()
    p = torch.full((1, V), -200.0)
    p[0, 0] = 0
    ReverseKL()(q.log_softmax(-1), p.log_softmax(-1), torch.tensor([0]), {}).sum().backward()
    assert q.grad[0, 1] > 0.05 and q.grad[0, 0] < -0.05


def gradient(loss: LogitsLoss, q: Tensor, p: Tensor) -> Tensor:
    q = q.clone().requires_grad_()
    loss(q.log_softmax(-1), p.log_softmax(-1), LABELS, FACTS).sum().backward()
    return q.grad


def test_the_ends_of_jsd_are_the_two_kls():
    q, p = logits(1, 0.5), logits(2, 0.5)
    torch.testing.assert_close(
        gradient(JSD(1e-6), q, p) / 1e-6, gradient(ForwardKL(), q, p), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        gradient(JSD(1 - 1e-6), q, p) / 1e-6, gradient(ReverseKL(), q, p), rtol=1e-3, atol=1e-5
    )


def test_jsd_and_total_variation_are_bounded():
    q, p = (logits(seed, 300.0).log_softmax(-1) for seed in (1, 2))
    assert 0.99 * math.log(2) < float(JSD()(q, p, LABELS, {}).max()) <= math.log(2) + 1e-12
    assert 0.99 < float(TotalVariation()(q, p, LABELS, {}).max()) <= 1 + 1e-12


def test_coarse_divergences_are_lower_bounds_that_grow_with_k():
    q, p = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    values = [TopKKL(k)(q, p, LABELS, {}) for k in range(1, V + 1)]
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-12).all()
    torch.testing.assert_close(values[-1], ForwardKL()(q, p, LABELS, {}))


def test_entropy():
    x = logits(3)
    torch.testing.assert_close(entropy(x.log_softmax(-1)), of(x).entropy())
    assert float(entropy(torch.zeros(1, 16).log_softmax(-1))) == pytest.approx(math.log(16))


def gamma(entropies: list[float], weights: list[float] | None = None, **options) -> float:
    e = torch.tensor(entropies)
    w = torch.full_like(e, 1 / len(entropies)) if weights is None else torch.tensor(weights)
    return EAKLD(**options).observe(TeacherTokens(e, e), w)["gamma"]


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
    nothing = torch.zeros(0)
    assert EAKLD().observe(TeacherTokens(nothing, nothing), nothing)["gamma"] == 1


@pytest.mark.parametrize("k", [1, 0, -3])
def test_bad_k(k):
    with pytest.raises(RazorError, match=f"k is '{k}'.*at least 2"):
        EAKLD(k=k)


def test_bad_cap():
    with pytest.raises(RazorError, match=r"'tokens'. Choices: batch, token"):
        EAKLD(cap="tokens")


@pytest.mark.parametrize("bad", [-0.1, 1.5, "tokens", None])
@pytest.mark.parametrize("kind", [EAKLD, CAKLD])
def test_bad_gamma(kind, bad):
    with pytest.raises(RazorError, match=f"gamma={bad}. Choices: batch, token, or a number from 0 to 1"):
        kind(gamma=bad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: JSD(0), "beta is 0.*distill=kld"),
        (lambda: JSD(1.0), "beta is 1.0"),
        (lambda: TopKKL(0), "k is 0"),
        (lambda: ForwardKL(temperature=0), "temperature=0 must be more than 0"),
        (lambda: ForwardKL(temperature=float("nan")), "temperature=nan"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(RazorError, match=words):
        make()


def test_cakld_is_as_sure_as_the_teacher_is_of_the_text():
    tokens = TeacherTokens(torch.zeros(2), torch.tensor([0.9, 0.1]))
    assert CAKLD().observe(tokens, torch.tensor([0.75, 0.25]))["gamma"] == pytest.approx(0.7)


def test_what_has_to_be_seen_beforehand():
    assert not CrossEntropy().needs_teacher
    assert all(ORACLES[name][0].needs_teacher for name in AGAINST_TEACHER)
    assert EAKLD().observes and CAKLD().observes
    assert not EAKLD(gamma="token").observes and not EAKLD(gamma=0.5).observes and not JSD().observes
