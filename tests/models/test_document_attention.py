"""Attention of documents against SDPA in double precision, values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from razor.models import document_attention as module
from razor.models.document_attention import Span, document_attention

WHOLE = slice(None)


def tensors(heads: int, kv_heads: int, tokens: int, dtype: torch.dtype, rows: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, heads, tokens, 8), (rows, kv_heads, tokens, 8), (rows, kv_heads, tokens, 8)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def cut(lengths: list[int]) -> list[Span]:
    ends = [0, *itertools.accumulate(lengths)]
    return [Span(WHOLE, start, end) for start, end in itertools.pairwise(ends)]


def wanted(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scale: float | None) -> Tensor:
    parts = [
        F.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (query, key, value)), is_causal=True, scale=scale, enable_gqa=True
        )
        for _, start, end in spans
    ]
    return torch.cat(parts, 2).transpose(1, 2)


def distance(found: Tensor, other: Tensor) -> float:
    return float((found - other).norm() / other.norm())


@pytest.fixture
def small_pieces(monkeypatch):
    for name, size in {"PIECE": 4, "LONG": 12, "BACK": 3, "KEYS": 5}.items():
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [[1], [7], [1, 11, 2], [13, 6]])
def test_gradients_in_double_precision(small_pieces, lengths, heads, kv_heads, scale):
    given_, spans = tensors(heads, kv_heads, sum(lengths), torch.float64), cut(lengths)
    found, other = document_attention(*given_, spans, scale), wanted(*given_, spans, scale)
    torch.testing.assert_close(found, other)
    towards = torch.randn(found.shape, dtype=found.dtype)
    for own, sdpa in zip(
        torch.autograd.grad(found, given_, towards), torch.autograd.grad(other, given_, towards), strict=True
    ):
        torch.testing.assert_close(own, sdpa)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_errors_are_those_of_sdpa(lengths, dtype):
    """The gradient may be off by what SDPA's is off, and by the rounding of what is multiplied.

    In 16 bits that rounding is the large one; in 32 bits it is that of the sums over some hundred tokens,
    whose order differs from SDPA's and from processor to processor.
    """
    spans = cut(lengths)
    given_ = tensors(6, 2, sum(lengths), dtype)
    exact = [x.detach().double().requires_grad_() for x in given_]
    towards = torch.randn(2, sum(lengths), 6, 8).to(dtype)
    gradients = []
    for attend, at in ((document_attention, given_), (wanted, given_), (wanted, exact)):
        out = attend(*at, spans, None)
        gradients.append([out, *torch.autograd.grad(out, at, towards.to(out.dtype))])
    rounding = (1.5 if dtype is torch.bfloat16 else 16) * torch.finfo(dtype).eps
    for own, sdpa, right in zip(*gradients, strict=True):
        own, sdpa, right = own.detach(), sdpa.detach(), right.detach()
        norm = float(right.norm())
        if norm > 1e-6:  # of one token alone the scores have no gradient
            assert float((own - right).norm()) <= float((sdpa - right).norm()) + rounding * norm


def test_scores_far_from_zero_keep_their_gradient():
    """A common part of all scores, or of all values, cancels; it must not take the precision with it."""
    query, key, value = tensors(2, 2, 64, torch.float32)
    shifted = [(query + 3).bfloat16(), (key + 3).bfloat16(), (value + 1).bfloat16()]
    given_ = [x.detach().requires_grad_() for x in shifted]
    exact = [x.detach().double().requires_grad_() for x in shifted]
    spans, towards = cut([64]), torch.randn(2, 64, 2, 8).bfloat16()
    own = torch.autograd.grad(document_attention(*given_, spans), given_, towards)
    sdpa = torch.autograd.grad(wanted(*given_, spans, None), given_, towards)
    right = torch.autograd.grad(wanted(*exact, spans, None), exact, towards.double())
    for found, other, truth in zip(own, sdpa, right, strict=True):
        assert distance(found, truth) < 2 * distance(other, truth) + 0.01


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_strides(which):
    given_ = tensors(4, 2, 6, torch.float32)
    wanted_ = document_attention(*given_, cut([6]))
    given_[which] = given_[which].mT.contiguous().mT
    assert given_[which].stride(-1) != 1
    torch.testing.assert_close(document_attention(*given_, cut([6])), wanted_)


def test_backward_under_autocast_keeps_its_precision():
    given_ = tensors(4, 2, 40, torch.float32)
    out = document_attention(*given_, cut([40])).square().sum()
    found = torch.autograd.grad(out, given_, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = torch.autograd.grad(out, given_)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_no_second_derivative():
    given_ = tensors(2, 2, 5, torch.float64)
    out = document_attention(*given_, cut([5])).sum()
    (gradient,) = torch.autograd.grad(out, given_[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        gradient.sum().backward()
