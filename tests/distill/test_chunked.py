"""Chunking changes nothing: same values, same gradients, whatever the size of a chunk and of its blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from razor.distill import EAKLD, CrossEntropy, ForwardKL, ReverseKL, Trace, chunked
from razor.distill.chunked import blocks, chunked_loss, chunks, teacher_entropy, teacher_logits
from razor.distill.logits import forward_kl

LOSSES = (CrossEntropy(), ForwardKL(), ReverseKL(), EAKLD())
PART_WEIGHTS = torch.tensor([0.1, 1.0, 0.5, 2.0])
FACTS = {"gamma": 0.4}
VOCABULARY = 29


def formula_for(labels: Tensor) -> Any:
    def formula(student: Tensor, teacher: Tensor | None, part: slice) -> Tensor:
        return torch.stack([loss.per_token(student, teacher, labels[part], FACTS) for loss in LOSSES])

    return formula


def in_one_piece(student: Trace, teacher: Trace, batch: Any) -> tuple[Tensor, Tensor]:
    """The whole thing in float64 and plain autograd."""

    def logp(trace: Trace) -> Tensor:
        bias = 0 if trace.head_bias is None else trace.head_bias.double()
        return (trace.hidden[batch.valid].double() @ trace.head_weight.double().T + bias).log_softmax(-1)

    values = formula_for(batch.labels[batch.valid])(logp(student), logp(teacher).detach(), slice(None))
    return (PART_WEIGHTS.double() @ values * batch.token_weights().double()).sum(), values


def leaves(trace: Trace) -> list[Tensor]:
    return [t for t in (trace.hidden, trace.head_weight, trace.head_bias) if t is not None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("chunk", "block"), [(1, 1), (2, 1), (3, 2), (5, 3), (5, 8), (14, 4), (1000, 1000)], ids=str
)
def test_values_and_gradients(make_batch, make_trace, monkeypatch, bias, chunk, block):
    batch = make_batch()
    assert batch.tokens % 5 and batch.tokens % 3
    monkeypatch.setitem(chunked.BLOCK_BYTES, "cpu", 4 * VOCABULARY * block)
    student, teacher = make_trace(batch, 1, bias), make_trace(batch, 2, bias)
    total, values = chunked_loss(
        student,
        teacher_logits(teacher, batch.valid),
        batch.valid,
        formula_for(batch.labels[batch.valid]),
        PART_WEIGHTS,
        batch.token_weights(),
        chunk_bytes=4 * VOCABULARY * chunk,
    )
    expected, expected_values = in_one_piece(student, teacher, batch)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values.double(), expected_values, rtol=1e-4, atol=1e-5)
    assert not values.requires_grad and values.shape == (4, batch.tokens)
    found = torch.autograd.grad(3 * total, leaves(student))
    for got, wanted in zip(found, torch.autograd.grad(3 * expected, leaves(student)), strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert all(leaf.grad is None for leaf in leaves(teacher))


def test_one_token(make_batch, make_trace):
    batch = make_batch([[3]], prompt=1)
    assert batch.tokens == 1
    student, teacher = make_trace(batch, 1), make_trace(batch, 2)
    total, values = chunked_loss(
        student,
        teacher_logits(teacher, batch.valid),
        batch.valid,
        formula_for(batch.labels[batch.valid]),
        PART_WEIGHTS,
        batch.token_weights(),
    )
    torch.testing.assert_close(total.double(), in_one_piece(student, teacher, batch)[0])
    assert values.shape == (4, 1)


def test_without_gradient_nothing_is_kept(make_batch, make_trace):
    batch = make_batch()
    student = make_trace(batch, 1)
    arguments = (student, None, batch.valid, lambda s, t, p: CE(s, p), torch.ones(1), batch.token_weights())
    labels = batch.labels[batch.valid]

    def CE(logp: Tensor, part: slice) -> Tensor:
        return LOSSES[0].per_token(logp, None, labels[part], {})[None]

    with torch.no_grad():
        quiet, _ = chunked_loss(*arguments)
    loud, _ = chunked_loss(*arguments)
    assert not quiet.requires_grad and loud.requires_grad and torch.equal(quiet, loud.detach())


def test_a_frozen_head_gets_no_gradient(make_batch, make_trace):
    batch = make_batch()
    student = make_trace(batch, 1)
    student.head_weight.requires_grad_(False)
    labels = batch.labels[batch.valid]
    total, _ = chunked_loss(
        student,
        None,
        batch.valid,
        lambda logp, _, part: LOSSES[0].per_token(logp, None, labels[part], {})[None],
        torch.ones(1),
        batch.token_weights(),
    )
    total.backward()
    assert student.head_weight.grad is None and student.hidden.grad is not None


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 200), st.integers(1, 1000), st.integers(1, 50_000))
def test_chunks_cover_every_token_once_within_memory(tokens, row_bytes, target):
    parts = list(chunks(tokens, row_bytes, target))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(tokens))
    for part in parts:
        size = part.stop - part.start
        assert size == 1 or size * row_bytes <= target


def test_blocks_cover_a_chunk():
    logits = torch.zeros(10, 150_000)
    parts = list(blocks(logits))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(10))
    assert len(parts) > 1 and all(4 * logits[part].numel() <= chunked.BLOCK_BYTES["cpu"] for part in parts)
    assert list(blocks(logits.to("meta"))) == [slice(0, 10)]


def test_no_tensor_of_all_logits_is_ever_made(make_batch, make_trace, monkeypatch):
    batch = make_batch()
    student, teacher = make_trace(batch, 1), make_trace(batch, 2)
    monkeypatch.setitem(chunked.BLOCK_BYTES, "cpu", 4 * VOCABULARY * 2)
    asked, seen = [], []

    def formula(s: Tensor, t: Tensor | None, part: slice) -> Tensor:
        assert t is not None and s.dtype == t.dtype == torch.float32
        seen.append((len(s), len(t), part.stop - part.start))
        return forward_kl(s, t)[None]

    def of(part: slice) -> Tensor:
        asked.append(part.stop - part.start)
        return teacher_logits(teacher, batch.valid)(part)

    chunked_loss(student, of, batch.valid, formula, torch.ones(1), batch.token_weights(), 4 * 4 * VOCABULARY)
    assert max(asked) == 4 and sum(asked) == batch.tokens
    assert max(n for sizes in seen for n in sizes) == 2 and sum(n for _, _, n in seen) == batch.tokens


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_teachers_entropy(make_batch, make_trace, chunk):
    batch = make_batch()
    teacher = make_trace(batch, 2, bias=True)
    logits = teacher_logits(teacher, batch.valid)(slice(None))
    found = teacher_entropy(teacher, batch.valid, 4 * VOCABULARY * chunk)
    torch.testing.assert_close(
        found.double(), Categorical(logits=logits.double()).entropy(), rtol=1e-5, atol=1e-6
    )
    assert not logits.requires_grad and not found.requires_grad
    assert teacher_entropy(teacher, torch.zeros_like(batch.valid)).shape == (0,)


def pair(distance: float, scale: float = 3.0) -> tuple[Trace, Trace]:
    """bf16 teacher and student with logits of a language model's size, some distance apart."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(300, 32, generator=generator) * scale / 32**0.5).bfloat16()
    hidden = torch.randn(1, 150, 32, generator=generator)
    moved = hidden + distance * torch.randn(hidden.shape, generator=generator)
    return Trace(moved.bfloat16(), weight), Trace(hidden.bfloat16(), weight)


def kl(loss: Any, student: Trace, teacher: Trace) -> float:
    valid = torch.ones(student.hidden.shape[:2], dtype=torch.bool)
    weights = torch.full((int(valid.sum()),), 1 / int(valid.sum()))
    of = teacher_logits(teacher, valid)
    one = torch.ones(1)
    found, _ = chunked_loss(
        student, of, valid, lambda s, t, _: loss.per_token(s, t, None, {})[None], one, weights
    )
    return float(found)


KLS = pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL()], ids=["forward", "reverse"])


@KLS
@pytest.mark.parametrize("distance", [0.3, 0.03, 0.004])
def test_the_kl_of_bf16_logits_is_exact(loss, distance):
    """The softmax and all that follows is fp32: next to it 1 % is a wide margin, down to a KL of 1e-4."""

    def exact(trace: Trace) -> Tensor:
        return F.linear(trace.hidden[0], trace.head_weight).double().log_softmax(-1)

    student, teacher = pair(distance)
    wanted = float(loss.per_token(exact(student), exact(teacher), None, {}).mean())
    assert wanted > 1e-4 and kl(loss, student, teacher) == pytest.approx(wanted, rel=0.01)


@KLS
@pytest.mark.parametrize("distance", [0.3, 0.1])
def test_the_kl_of_bf16_states_is_exact_where_it_is_not_small(loss, distance):
    """Against a head that would not round its logits."""

    def exact(trace: Trace) -> Tensor:
        return (trace.hidden[0].double() @ trace.head_weight.double().T).log_softmax(-1)

    student, teacher = pair(distance)
    wanted = float(loss.per_token(exact(student), exact(teacher), None, {}).mean())
    assert kl(loss, student, teacher) == pytest.approx(wanted, rel=0.01)
