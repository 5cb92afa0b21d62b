from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from razor.distill import AttentionInputs, Batch, KeyValues, Shape
from razor.errors import RazorError

LENGTHS = ((9, 4), (6,))


def shape(kv_heads: int = 2, head_dim: int = 6, attention: frozenset[int] = frozenset({1, 2, 3})) -> Shape:
    return Shape("Tiny", 3, 24, 4, kv_heads, head_dim, attention)


def fitted(loss: KeyValues | None = None) -> KeyValues:
    loss = loss or KeyValues()
    loss.fit(shape(), shape())
    return loss


def inputs(batch: Batch, seed: int, dtype: torch.dtype = torch.float32) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens = batch.labels.shape
    queries, keys, values = (
        torch.randn(rows, heads, tokens, 6, generator=generator).to(dtype) for heads in (4, 2, 2)
    )
    return AttentionInputs(queries, 5 * keys, 0.1 * values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_is_relative_to_the_teachers_mean_square(make_batch, dtype):
    batch = make_batch(LENGTHS)
    own, other = inputs(batch, 1, dtype), inputs(batch, 2, dtype)
    wanted = []
    for b, t in batch.valid.nonzero().tolist():
        parts = []
        for name in ("keys", "values"):
            s, r = (getattr(x, name)[b, :, t].double().flatten().tolist() for x in (own, other))
            parts.append(sum((x - y) ** 2 for x, y in zip(s, r, strict=True)) / sum(y**2 for y in r))
        wanted.append(sum(parts) / 2)
    found = fitted().per_token(own, other, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_layers_of_large_and_small_numbers_count_alike(make_batch):
    batch = make_batch(LENGTHS)
    own, other = inputs(batch, 1), inputs(batch, 2)
    larger = [replace(x, keys=40 * x.keys, values=0.2 * x.values) for x in (own, other)]
    torch.testing.assert_close(
        fitted().per_token(larger[0], larger[1], batch), fitted().per_token(own, other, batch)
    )


def test_the_gradient_is_checked(make_batch):
    batch = make_batch(((4,),), columns=5)
    own, other = inputs(batch, 1, torch.float64), inputs(batch, 2, torch.float64)
    loss = fitted()

    def value(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return loss.per_token(AttentionInputs(own.queries, keys, values), other, batch)

    assert torch.autograd.gradcheck(value, (own.keys.requires_grad_(), own.values.requires_grad_()))


def test_equal_ones_have_no_loss_and_only_valid_tokens_count(make_batch):
    batch = make_batch(LENGTHS)
    own, other = inputs(batch, 1), inputs(batch, 2)
    assert not fitted().per_token(own, own, batch).any()
    before = fitted().per_token(own, other, batch)
    other.keys.transpose(1, 2)[~batch.valid] = float("nan")
    assert torch.equal(fitted().per_token(own, other, batch), before)
    zero = AttentionInputs(own.queries, torch.zeros_like(own.keys), torch.zeros_like(own.values))
    assert fitted().per_token(own, zero, batch).isfinite().all()
    assert fitted().per_token(own, other, make_batch([[2, 1], [3]], prompt=5)).shape == (0,)


def test_layers():
    assert fitted().teacher_layers() == {1, 2, 3} and fitted(KeyValues([-1])).teacher_layers() == {3}
    hybrid, loss = shape(attention=frozenset({2})), KeyValues()
    loss.fit(hybrid, hybrid)
    assert loss.teacher_layers() == {2}
    with pytest.raises(
        RazorError, match="layer 1 of Tiny is compared with layer 1 of Tiny, which has no attention"
    ):
        KeyValues([1]).fit(hybrid, shape())


def test_other_heads_are_said(make_batch):
    words = "Tiny keeps 1 KV heads of 6, Tiny 2 of 6: keys and values can be compared if"
    with pytest.raises(RazorError, match=words):
        KeyValues().fit(shape(kv_heads=1), shape())
    with pytest.raises(RazorError, match="2 KV heads of 8"):
        KeyValues().fit(shape(head_dim=8), shape())
    batch = make_batch(LENGTHS)  # also of layers that differ from what the model's config says
    own, other = inputs(batch, 1), inputs(batch, 2)
    with pytest.raises(RazorError, match=words):
        fitted().per_token(replace(own, keys=own.keys[:, :1]), other, batch)
