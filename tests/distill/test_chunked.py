"""Chunking changes nothing: same values, same gradients, whatever the size of a chunk and of its blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from razor.distill import EAKLD, CrossEntropy, ForwardKL, ReverseKL, Trace, chunked, pieces
from razor.distill.chunked import chunked_loss
from razor.distill.formula import Formula
from razor.distill.head import Head
from razor.distill.logits import forward_kl
from razor.distill.pieces import blocks
from razor.distill.pieces import pieces as chunks
from razor.distill.teacher_logits import TeacherLogits

LOSSES = (CrossEntropy(), ForwardKL(), ReverseKL(), EAKLD())
PART_WEIGHTS = torch.tensor([0.1, 1.0, 0.5, 2.0])
FACTS = {"gamma": 0.4}
VOCABULARY = 29


def formula_for(labels: Tensor) -> Any:
    def formula(student: Tensor, teacher: Tensor | None, part: slice) -> Tensor:
        return torch.stack([loss(student, teacher, labels[part], FACTS) for loss in LOSSES])

    return formula


def in_one_piece(student: Trace, teacher: Trace, batch: Any) -> tuple[Tensor, Tensor]:
    """The whole thing in float64 and plain autograd."""

    def logp(trace: Trace) -> Tensor:
        bias = 0 if trace.head_bias is None else trace.head_bias.double()
        return (trace.hidden[batch.valid].double() @ trace.head_weight.double().T + bias).log_softmax(-1)

    values = formula_for(batch.labels[batch.valid])(logp(student), logp(teacher).detach(), slice(None))
    return (PART_WEIGHTS.double() @ values * batch.token_weights().double()).sum(), values


def loss_of(student: Trace, teacher: Trace, batch: Any, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    return chunked_loss(
        Head.of(student, batch.valid),
        TeacherLogits(Head.of(teacher, batch.valid)),
        Formula(formula_for(batch.labels[batch.valid])),
        PART_WEIGHTS,
        batch.token_weights(),
        chunk,
    )


def leaves(trace: Trace) -> list[Tensor]:
    return [t for t in (trace.hidden, trace.head_weight, trace.head_bias) if t is not None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("chunk", "block"), [(1, 1), (2, 1), (3, 2), (5, 3), (5, 8), (14, 4), (1000, 1000)], ids=str
)
def test_values_and_gradients(make_batch, make_trace, monkeypatch, bias, chunk, block):
    batch = make_batch()
    assert batch.tokens % 5 and batch.tokens % 3
    monkeypatch.setitem(pieces.BLOCK_BYTES, "cpu", 4 * VOCABULARY * block)
    monkeypatch.setattr("razor.distill.chunked.SLICE_BYTES", 4 * 12 * block)
    student, teacher = make_trace(batch, 1, bias), make_trace(batch, 2, bias)
    total, values = loss_of(student, teacher, batch, chunk=4 * VOCABULARY * chunk)
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
    total, values = loss_of(student, teacher, batch)
    torch.testing.assert_close(total.double(), in_one_piece(student, teacher, batch)[0], rtol=1e-6, atol=0)
    assert values.shape == (4, 1)


def cross_entropy(student: Trace, batch: Any) -> Tensor:
    labels = batch.labels[batch.valid]
    total, _ = chunked_loss(
        Head.of(student, batch.valid),
        None,
        Formula(lambda logp, _, part: CrossEntropy()(logp, None, labels[part], {})[None]),
        torch.ones(1),
        batch.token_weights(),
    )
    return total


@pytest.mark.parametrize("quietly", [torch.no_grad, torch.inference_mode])
def test_without_gradient_nothing_is_differentiated(make_batch, make_trace, monkeypatch, quietly):
    batch = make_batch()
    student = make_trace(batch, 1)
    loud = cross_entropy(student, batch)
    monkeypatch.setattr(Formula, "differentiate", None)
    with quietly():
        quiet = cross_entropy(student, batch)
    assert student.head_weight.requires_grad and not quiet.requires_grad
    assert loud.requires_grad and torch.equal(quiet, loud.detach())


def test_autocast_does_not_round_fp32_products(make_batch, make_trace):
    batch = make_batch()
    student, teacher = make_trace(batch, 1), make_trace(batch, 2)
    wanted, _ = loss_of(student, teacher, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = loss_of(student, teacher, batch)
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_a_frozen_head_gets_no_gradient(make_batch, make_trace):
    batch = make_batch()
    student = make_trace(batch, 1)
    student.head_weight.requires_grad_(False)
    cross_entropy(student, batch).backward()
    assert student.head_weight.grad is None and student.hidden.grad is not None


def test_frozen_states_get_no_gradient(make_batch, make_trace):
    batch = make_batch()
    student = make_trace(batch, 1)
    student.hidden.requires_grad_(False)
    cross_entropy(student, batch).backward()
    assert student.head_weight.grad is not None and student.hidden.grad is None


def test_gradcheck_in_double_precision(make_batch, make_trace):
    """Finite differences of the whole thing: chunks of two tokens, blocks of one."""
    batch = make_batch([[6], [4]])
    student, teacher = (make_trace(batch, seed, True, dtype=torch.float64) for seed in (1, 2))

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        trace = Trace(hidden, weight, bias)
        return loss_of(trace, teacher, batch, chunk=2 * 8 * VOCABULARY)[0]

    inputs = [leaf.detach().requires_grad_() for leaf in leaves(student)]
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("scale", [1 / 3, 0.7, 1.3])
def test_a_scale_is_not_rounded_to_bf16(make_batch, make_trace, scale):
    """Shares and accumulation weigh micro-batches: three digits would not do."""
    batch = make_batch()
    student, teacher = (make_trace(batch, seed, dtype=torch.bfloat16) for seed in (1, 2))
    plain, scaled = (
        torch.autograd.grad(loss_of(student, teacher, batch)[0] * factor, leaves(student))
        for factor in (1, scale)
    )
    for one, other in zip(plain, scaled, strict=True):
        assert torch.equal(other, (one.float() * scale).bfloat16())


def test_a_second_backward_through_a_large_head_is_refused(make_batch, make_trace, monkeypatch):
    batch = make_batch()
    monkeypatch.setattr("razor.distill.chunked.SLICE_BYTES", 100)
    total, _ = loss_of(make_trace(batch, 1), make_trace(batch, 2), batch)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward goes through a chunked loss once"):
        total.backward()


@pytest.mark.parametrize("kept, bound", [(0, 0.02), (10 * 2 * VOCABULARY, 0.01), (2**20, 0.01)])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_gradient_of_bf16_weights_is_rounded_seldom(
    make_batch, make_trace, monkeypatch, chunk, kept, bound
):
    """Once for each buffer of logits' gradients: for every chunk, every ten tokens, and once in all."""
    monkeypatch.setattr(chunked, "KEPT_BYTES", kept)
    batch = make_batch(((14,),) * 4)
    student, teacher = (make_trace(batch, seed, dtype=torch.bfloat16) for seed in (1, 2))
    total, _ = loss_of(student, teacher, batch, chunk=2 * VOCABULARY * chunk)
    found = torch.autograd.grad(total, student.head_weight)[0]
    expected, _ = in_one_piece(student, teacher, batch)
    wanted = torch.autograd.grad(expected, student.head_weight)[0]
    assert float((found.double() - wanted.double()).norm() / wanted.double().norm()) < bound


@pytest.mark.parametrize("dtype, rows", [(torch.bfloat16, 9), (torch.float32, 3)])
def test_few_of_the_logits_gradients_are_kept(monkeypatch, dtype, rows):
    """In 16 bits as many chunks of three tokens as the bound allows; in fp32, where nothing is rounded, one."""
    size = torch.empty(0, dtype=dtype).element_size()
    monkeypatch.setattr(chunked, "KEPT_BYTES", 10 * size * VOCABULARY)
    head = Head(torch.zeros(30, 4, dtype=dtype), torch.zeros(VOCABULARY, 4, dtype=dtype))
    parts = list(chunks(30, head.row_bytes, 3 * head.row_bytes))
    sums = chunked._Gradients(head, (True, True, False), parts)
    places = {sums.place(part).untyped_storage().data_ptr() for part in parts}
    assert len(places) == 1 and len(sums._logits) == rows


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 200), st.integers(1, 1000), st.integers(1, 50_000))
def test_chunks_cover_every_token_once_within_memory(tokens, row_bytes, target):
    parts = list(chunks(tokens, row_bytes, target))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(tokens))
    for part in parts:
        size = part.stop - part.start
        assert size == 1 or size * row_bytes <= target


def test_blocks_cover_a_chunk():
    logits = torch.zeros(10, 450_000)
    parts = list(blocks(logits))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(10))
    assert len(parts) > 1 and all(4 * logits[part].numel() <= pieces.BLOCK_BYTES["cpu"] for part in parts)
    assert list(blocks(logits.to("meta"))) == [slice(0, 10)]


def test_no_tensor_of_all_logits_is_ever_made(make_batch, make_trace, monkeypatch):
    batch = make_batch()
    student, teacher = make_trace(batch, 1), make_trace(batch, 2)
    monkeypatch.setitem(pieces.BLOCK_BYTES, "cpu", 4 * VOCABULARY * 2)
    made: list[int] = []
    product = Head.product

    def watched(self: Head, part: slice, out: Tensor | None = None) -> Tensor:
        made.append(len(result := product(self, part, out)))
        return result

    monkeypatch.setattr(Head, "product", watched)
    seen = []

    def formula(s: Tensor, t: Tensor | None, part: slice) -> Tensor:
        assert t is not None and s.dtype == t.dtype == torch.float32
        seen.append((len(s), len(t), part.stop - part.start))
        return forward_kl(s, t)[None]

    heads = Head.of(student, batch.valid), TeacherLogits(Head.of(teacher, batch.valid))
    chunked_loss(*heads, Formula(formula), torch.ones(1), batch.token_weights(), 4 * 4 * VOCABULARY)
    assert max(made) == 4 and sum(made) == 2 * batch.tokens
    assert max(n for sizes in seen for n in sizes) == 2 and sum(n for _, _, n in seen) == batch.tokens


@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_teacher_says_beforehand(make_batch, make_trace, monkeypatch, kept, block, dtype):
    batch = make_batch()
    monkeypatch.setattr("razor.distill.teacher_logits.KEPT_BYTES", kept)
    monkeypatch.setitem(pieces.CHUNK_LOGITS, "cpu", VOCABULARY * 2)
    monkeypatch.setitem(pieces.BLOCK_BYTES, "cpu", 4 * VOCABULARY * block)
    teacher, labels = make_trace(batch, 2, bias=True, dtype=dtype), batch.labels[batch.valid]
    logits = TeacherLogits(Head.of(teacher, batch.valid))
    found = logits.observe(labels)
    exact = teacher.hidden[batch.valid].double() @ teacher.head_weight.double().T + teacher.head_bias.double()
    wanted, close = Categorical(logits=exact), {"rtol": 1e-5, "atol": 1e-6}
    if dtype == torch.bfloat16:
        close = {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found.entropy.double(), wanted.entropy(), **close)
    torch.testing.assert_close(found.label_probability.double(), wanted.log_prob(labels).exp(), **close)
    assert not found.entropy.requires_grad
    made = logits.product(slice(1, 3))
    torch.testing.assert_close(made, (teacher.hidden[batch.valid] @ teacher.head_weight.T)[1:3].detach())
    assert not made.requires_grad


def test_nothing_to_observe(make_batch, make_trace):
    batch = make_batch([[1], [2]], prompt=2)
    found = TeacherLogits(Head.of(make_trace(batch), batch.valid)).observe(batch.labels[batch.valid])
    assert found.entropy.shape == found.label_probability.shape == (0,)
