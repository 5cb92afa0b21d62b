"""What is kept of a distribution: sampled targets are right on average, top-k ones are what they claim."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from razor.data.document import Document
from razor.data.packing import collate, pack
from razor.data.teacher_cache_kinds import Kept, Sampled, TopK, id_bytes, kept_of, pack_ids, unpack_ids
from razor.data.teacher_cache_write import say
from razor.distill import EAKLD, CrossEntropy, ForwardKL, Objective, Targets
from razor.distiller import Distiller
from razor.errors import RazorError

VOCABULARY = 40


def distributions(tokens: int = 3, sharpness: float = 2.0, seed: int = 0) -> torch.Tensor:
    """Log-probabilities [tokens, VOCABULARY], fp32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(sharpness * torch.randn(tokens, VOCABULARY, generator=generator), -1)


def made(kept: Kept, logp: torch.Tensor, row: int = 0) -> Targets:
    labels = torch.arange(len(logp)) % logp.shape[-1]
    return kept.targets(logp, labels, kept.chance(row, len(logp)))


def dense(targets: Targets, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """The sampled estimate of each distribution, float64."""
    return torch.zeros(len(targets.ids), vocabulary, dtype=torch.float64).scatter_add_(
        1, targets.ids, targets.values.double()
    )


def test_draws_follow_the_distribution() -> None:
    """Pearson's test of many draws at each token, and of few at many rows."""
    logp = distributions()
    many = (dense(made(Sampled(60_000), logp)) * 60_000).round()
    few = sum((dense(made(Sampled(50), logp, row)) * 50).round() for row in range(1200))
    for counts in (many, few):
        assert counts.sum(1).tolist() == pytest.approx([60_000] * 3)
        for found, p in zip(counts.numpy(), logp.double().exp().numpy(), strict=True):
            assert stats.chisquare(found, 60_000 * p / p.sum()).pvalue > 1e-3


def test_draws_of_one_token_are_independent() -> None:
    """The variance of counts / n is that of a multinomial, p (1 - p) / n."""
    logp, n, rows = distributions(), 50, 4000
    p = logp.double().exp()
    found = torch.stack([dense(made(Sampled(n), logp, row)) for row in range(rows)])
    expected = p * (1 - p) / n
    assert ((found.var(0) / expected)[p > 0.02] - 1).abs().max() < 0.15
    error = (found.mean(0) - p).abs() / (expected / rows).sqrt()
    assert error.max() < 4.5  # of 120 probabilities


def test_certain_and_impossible_tokens() -> None:
    logp = torch.log_softmax(torch.tensor([[0.0, -200.0, -200.0], [-200.0, 0.0, 0.0]]), -1)
    targets = made(Sampled(1000), logp)
    assert targets.values[0, 0] == 1 and targets.ids[0, 0] == 0
    assert set(targets.ids[1][targets.values[1] > 0].tolist()) == {1, 2}
    assert targets.entropy.tolist() == pytest.approx([0, np.log(2)], abs=1e-6)
    top = made(TopK(1), logp[:1])
    assert torch.isfinite(top.tail).all() and torch.isfinite(top.values).all()  # type: ignore[arg-type]
    student = distributions(1)[:, :3].log_softmax(-1)
    loss = top.loss(ForwardKL(), student, slice(0, 1), torch.zeros(1, dtype=torch.long), {})
    assert float(loss) == pytest.approx(-float(student[0, 0]), rel=1e-5)


def test_sampled_values_average_to_the_true_kl() -> None:
    logp, student = distributions(), distributions(seed=1)
    true = (logp.double().exp() * (logp.double() - student.double())).sum(1)
    labels, part = torch.zeros(3, dtype=torch.long), slice(0, 3)
    values = torch.stack(
        [made(Sampled(50), logp, row).loss(ForwardKL(), student, part, labels, {}) for row in range(2000)]
    ).double()
    error = (values.mean(0) - true).abs() / (values.std(0) / 2000**0.5)
    assert error.max() < 4


@pytest.mark.parametrize("k", [1, 7, VOCABULARY - 1])
@pytest.mark.parametrize("values", ["float16", "float32"])
def test_top_k_with_its_tail(k: int, values: str) -> None:
    """Against the KL of the coarse distributions, written down in float64."""
    kept = TopK(k, values)
    logp, student = distributions(5), distributions(5, seed=1)
    targets = through_the_store(kept, made(kept, logp))
    found = targets.loss(ForwardKL(), student[1:4], slice(1, 4), torch.zeros(3, dtype=torch.long), {})
    for token, value in zip(range(1, 4), found.tolist(), strict=True):
        p, q = logp[token].double().exp().numpy(), student[token].double().exp().numpy()
        best = np.argsort(-p)[:k]
        kept_p = np.append(p[best], 1 - p[best].sum())
        kept_q = np.append(q[best], 1 - q[best].sum())
        assert value == pytest.approx(
            stats.entropy(kept_p, kept_q), rel=5e-3 if values == "float16" else 1e-5
        )
        assert value < stats.entropy(p, q) + 1e-3  # a lower bound
    own = targets.loss(ForwardKL(), logp, slice(0, 5), torch.zeros(5, dtype=torch.long), {})
    assert own.abs().max() < 1e-6  # half precision adds up to 1 again, and is off by the square of its error


def through_the_store(kept: Kept, targets: Targets) -> Targets:
    ids, values, tail = kept.unpack(kept.pack(targets, VOCABULARY))
    return Targets(targets.kind, ids, values, tail, targets.entropy, targets.label_probability)


@pytest.mark.parametrize("loss", [ForwardKL(), EAKLD()], ids=lambda loss: type(loss).__name__)
def test_full_targets_lose_nothing(loss: Any) -> None:
    kept, labels = TopK(VOCABULARY, "float32"), torch.zeros(5, dtype=torch.long)
    logp, student = distributions(5), distributions(5, seed=1)
    targets = through_the_store(kept, made(kept, logp))
    assert targets.tail is None
    facts = loss.observe(targets.tokens, torch.full((5,), 0.2))
    found = targets.loss(loss, student, slice(0, 5), labels, facts)
    torch.testing.assert_close(found, loss(student, logp, labels, facts), rtol=1e-5, atol=1e-6)


ROWS = pack(
    [
        Document(np.random.default_rng(n).integers(0, 256, 24).astype(np.int32), np.arange(24) > 3)
        for n in range(4)
    ],
    48,
    pad_id=256,
)


def gradient(model: Any, objective: Objective, teacher: Any, targets: Targets | None) -> torch.Tensor:
    batch = replace(collate([ROWS[0], ROWS[1]]), targets=targets)
    model.zero_grad(set_to_none=True)
    loss, _ = Distiller(objective, model, teacher, cached=None if targets is None else targets.kind)(batch)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


def test_the_gradient_is_right_on_average(tiny_model: Any) -> None:
    """Through the whole model: the mean over many caches is the online gradient, to its own standard error."""
    torch.manual_seed(1)
    student = copy.deepcopy(tiny_model).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    objective = Objective({"kld": ForwardKL(), "task": CrossEntropy()}, {"kld": 1.0, "task": 0.1})
    true = gradient(student, objective, copy.deepcopy(tiny_model), None)
    count = 150
    found = torch.stack(
        [
            gradient(student, objective, None, Targets.cat(say(tiny_model, ROWS, range(2), Sampled(8, seed))))
            for seed in range(count)
        ]
    )
    spread = (found - true).square().sum(1).mean()
    error = (found.mean(0) - true).square().sum()
    assert spread > 0.1 * true.square().sum()  # one cache of so few draws is noisy ...
    assert error < 2 * spread / count  # ... without a bias that the mean would show
    biased = gradient(student, objective, None, Targets.cat(say(tiny_model, ROWS, range(2), TopK(8))))
    assert (biased - true).square().sum() > 4 * error


@pytest.mark.parametrize(
    ("vocabulary", "size"), [(272, 2), (65_536, 2), (65_537, 3), (151_936, 3), (2**24 + 1, 4)]
)
def test_tokens_take_few_bytes(vocabulary: int, size: int) -> None:
    ids = np.array([[0, 1, 255], [256, vocabulary // 2, vocabulary - 1]], dtype=np.int64)
    packed = pack_ids(ids, vocabulary)
    assert id_bytes(vocabulary) == size and packed.nbytes == size * ids.size
    assert np.array_equal(unpack_ids(packed), ids)
    assert np.array_equal(unpack_ids(pack_ids(ids[0, :0], vocabulary)), ids[0, :0])


@pytest.mark.parametrize("draws", [1, 255, 256, 5000])
def test_counts_of_any_number_of_draws(draws: int) -> None:
    kept = Sampled(draws)
    targets = made(kept, distributions())
    back = through_the_store(kept, targets)
    assert torch.equal(dense(back), dense(targets))
    assert kept.pack(targets, VOCABULARY)["counts"].itemsize == (1 if draws < 256 else 2)


def test_kinds_by_name() -> None:
    assert kept_of("sampled", draws=3, k=9).describe() == {"kind": "sampled", "draws": 3, "seed": 0}
    assert kept_of("topk", draws=3, k=9).describe() == {"kind": "topk", "k": 9, "values": "float16"}
    with pytest.raises(RazorError, match=r"kind=sample.* Did you mean 'sampled'"):
        kept_of("sample")
