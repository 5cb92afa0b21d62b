"""Relations between tokens, against loops over tokens in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from razor.distill import AttentionInputs, AttentionRelations, Batch, LayerLoss, Objective, Shape, Trace
from razor.distill.relations import relation_kl
from razor.errors import RazorError
from razor.spec import from_spec, spec_of

LENGTHS = ((9, 4), (6, 2), (13,))


def shape(heads: int = 4, kv_heads: int = 2, head_dim: int = 6, name: str = "Tiny", layers: int = 3) -> Shape:
    return Shape(name, layers, 24, heads, kv_heads, head_dim, frozenset(range(1, layers + 1)))


def inputs(batch: Batch, model: Shape, seed: int, dtype: torch.dtype = torch.float32) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens = batch.labels.shape

    def random(heads: int) -> Tensor:
        return 2 * torch.randn(rows, heads, tokens, model.head_dim, generator=generator).to(dtype)

    return AttentionInputs(random(model.heads), random(model.kv_heads), random(model.kv_heads))


def by_hand(student: Tensor, teacher: Tensor, batch: Batch, heads: int) -> Tensor:
    """KL of each valid token: heads put side by side, cut anew, and every relation one number at a time."""

    def relation(x: Tensor, b: int, t: int, h: int, seen: list[int]) -> list[float]:
        together = [
            torch.cat([x[b, head, s].double() for head in range(x.shape[1])]) for s in range(x.shape[2])
        ]
        width = len(together[0]) // heads
        cut = [vector[h * width : (h + 1) * width] for vector in together]
        scores = [float(cut[t] @ cut[s]) / math.sqrt(width) for s in seen]
        largest = max(scores)
        each = [math.exp(score - largest) for score in scores]
        return [value / sum(each) for value in each]

    found = []
    for b, t in batch.valid.nonzero().tolist():
        seen = [s for s in range(t + 1) if batch.documents[b, s] == batch.documents[b, t]]
        total = 0.0
        for h in range(heads):
            q, p = relation(student, b, t, h, seen), relation(teacher, b, t, h, seen)
            total += sum(pi * (math.log(pi) - math.log(qi)) for pi, qi in zip(p, q, strict=True) if pi > 0)
        found.append(total / heads)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 1000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relations_are_those_of_a_loop(make_batch, chunk, dtype):
    batch = make_batch(LENGTHS)
    own, other = (inputs(batch, shape(), seed, dtype).queries for seed in (1, 2))
    found = relation_kl(own, other, batch, chunk)
    assert found.dtype == torch.float32 and found.shape == (batch.tokens,)
    torch.testing.assert_close(found.double(), by_hand(own, other, batch, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 700, 10**9])
def test_the_gradient_is_checked(make_batch, chunk):
    batch = make_batch(((5, 2), (4,)), columns=8)
    own, other = (inputs(batch, shape(2, 1, 3), s, torch.float64).queries for s in (1, 2))
    assert torch.autograd.gradcheck(lambda x: relation_kl(x, other, batch, chunk), own.requires_grad_())


def test_chunks_change_nothing(make_batch):
    batch = make_batch(LENGTHS)
    found = []
    for chunk in (1, 4 * 4 * 14, 2000, 10**9):
        own, other = (inputs(batch, shape(), seed).queries for seed in (1, 2))
        values = relation_kl(own.requires_grad_(), other, batch, chunk)
        (values * torch.arange(len(values))).sum().backward()
        found.append((values.detach(), own.grad))
    for values, gradient in found[1:]:
        torch.testing.assert_close(values, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "heads"),
    [
        (shape(4, 2, 6), shape(4, 2, 6), None),
        (shape(6, 2, 4), shape(4, 4, 8), None),  # 2 relation heads for queries, 2 for keys and values
        (shape(3, 1, 8), shape(8, 2, 4), None),  # nothing in common but 1
        (shape(6, 3, 4), shape(4, 2, 12), 12),  # heads cut in two or three
    ],
)
def test_head_counts_may_differ(make_batch, student, teacher, heads):
    batch, loss = (
        make_batch(LENGTHS),
        AttentionRelations([-1], {"queries": 1.0, "keys": 0.5, "values": 2}, heads),
    )
    loss.fit(student, teacher)
    own, other = inputs(batch, student, 1), inputs(batch, teacher, 2)
    wanted = torch.zeros(batch.tokens, dtype=torch.float64)
    for name, weight in (("queries", 1.0), ("keys", 0.5), ("values", 2.0)):
        a, b = getattr(own, name), getattr(other, name)
        common = heads or math.gcd(a.shape[1], b.shape[1])
        wanted += weight * by_hand(a, b, batch, common)
    torch.testing.assert_close(loss.per_token(own, other, batch).double(), wanted, rtol=1e-4, atol=1e-5)


def test_relations_can_be_chosen(make_batch):
    batch = make_batch(LENGTHS)
    own, other = inputs(batch, shape(), 1), inputs(batch, shape(), 2)
    found: dict[Any, Tensor] = {}
    for chosen in ("queries", "keys", "values"):
        loss = AttentionRelations(relations=[chosen])  # type: ignore[list-item]
        loss.fit(shape(), shape())
        found[chosen] = loss.per_token(own, other, batch)
    loss = AttentionRelations(relations={"values": 3.0, "keys": 0.0, "queries": 1.0})
    loss.fit(shape(), shape())
    torch.testing.assert_close(loss.per_token(own, other, batch), 3 * found["values"] + found["queries"])
    assert not torch.allclose(found["values"], found["keys"])


def test_a_model_has_no_divergence_from_itself(make_batch):
    batch, loss = make_batch(LENGTHS), AttentionRelations()
    loss.fit(shape(), shape())
    same = inputs(batch, shape(), 1, torch.bfloat16)
    for vectors in (same.queries, same.keys, same.values):
        vectors.requires_grad_()
    other = AttentionInputs(same.queries.detach(), same.keys.detach(), same.values.detach())
    values = loss.per_token(same, other, batch)
    assert not values.any()
    values.sum().backward()
    assert not same.keys.grad.any()


def test_no_other_document_no_later_token_and_no_padding_counts(make_batch):
    batch, loss = make_batch(LENGTHS), AttentionRelations()
    loss.fit(shape(), shape())
    batch.labels[0, 3:9] = -100  # the first document learns from its tokens 1 and 2 alone
    before = loss.per_token(inputs(batch, shape(), 1), inputs(batch, shape(), 2), batch)
    sees = torch.zeros_like(batch.valid)
    for b, t in batch.valid.nonzero().tolist():
        start = t - int(batch.position_ids[b, t])
        sees[b, start : t + 1] = True
    assert (~sees & (batch.documents >= 0)).sum() > 6 and (batch.documents < 0).sum() > 5

    changed = []
    for seed in (1, 2):
        found = inputs(batch, shape(), seed)
        for vectors in (found.queries, found.keys, found.values):
            vectors.transpose(1, 2)[~sees] = 50.0
            vectors.requires_grad_()
        changed.append(found)
    after = loss.per_token(changed[0], changed[1], batch)
    assert torch.equal(before, after.detach())
    after.sum().backward()
    for vectors in (changed[0].queries, changed[0].keys, changed[0].values):
        touched = vectors.grad.abs().sum((1, 3)) > 0
        assert not touched[~sees].any()
    alone = torch.tensor([[0, 1, 2]])  # each document by itself has the same loss as packed
    part = replace(
        batch,
        labels=batch.labels[:1, alone[0]],
        documents=batch.documents[:1, alone[0]],
        input_ids=batch.input_ids[:1, alone[0]],
        position_ids=batch.position_ids[:1, alone[0]],
    )
    cut = [
        AttentionInputs(*(x[:1, :, :3] for x in (found.queries, found.keys, found.values)))
        for found in changed
    ]
    torch.testing.assert_close(loss.per_token(cut[0], cut[1], part), after[:2], rtol=1e-5, atol=1e-6)


def test_left_padding_and_a_document_in_the_middle(make_batch):
    batch = make_batch(((4,),), columns=10)
    for name in ("labels", "documents", "position_ids", "input_ids"):
        setattr(batch, name, torch.roll(getattr(batch, name), 5, 1))
    own, other = (inputs(batch, shape(), seed).keys for seed in (1, 2))
    torch.testing.assert_close(
        relation_kl(own, other, batch).double(), by_hand(own, other, batch, 2), rtol=1e-4, atol=1e-5
    )


def test_a_first_token_has_one_relation_and_no_loss(make_batch):
    batch = make_batch(((2,), (2,)), prompt=0)
    assert batch.tokens == 2
    own, other = (inputs(batch, shape(), seed).keys.requires_grad_() for seed in (1, 2))
    values = relation_kl(own, other, batch)
    assert values.tolist() == [0, 0]
    values.sum().backward()
    assert not own.grad.any() and other.grad is None


def test_no_valid_token_is_a_zero_that_can_be_differentiated(make_batch):
    batch = make_batch([[2, 1], [3]], prompt=5)
    student = inputs(batch, shape(), 1)
    student.queries.requires_grad_()
    objective = Objective({"a": AttentionRelations()}, {"a": 1.0})
    objective.fit(shape(), shape())
    hidden, weight = torch.randn(*batch.labels.shape, 24, requires_grad=True), torch.randn(7, 24)
    own = Trace(hidden, weight, attention={3: student})
    other = Trace(hidden.detach(), weight, attention={3: inputs(batch, shape(), 2)})
    total, parts = objective(own, other, batch, objective.observe(other, batch))
    total.backward()
    assert float(total.detach()) == 0 and parts == {"a": 0}
    assert student.queries.grad is not None and not student.queries.grad.any()


def test_far_apart_models_stay_finite(make_batch):
    batch = make_batch(LENGTHS)
    own, other = (100 * inputs(batch, shape(), seed).keys for seed in (1, 2))
    values = relation_kl(own.requires_grad_(), other, batch)
    values.sum().backward()
    assert values.isfinite().all() and values.max() > 100 and own.grad.isfinite().all()


def test_layers_of_another_number_are_compared_at_the_same_depth():
    loss = AttentionRelations([2, -1])
    loss.fit(shape(layers=3), shape(layers=6))
    assert loss.teacher_layers() == {2, 6} and [loss.counterpart(i) for i in (2, 6)] == [1, 3]


@pytest.mark.parametrize(
    "loss",
    [
        AttentionRelations(),
        AttentionRelations("all", {"keys": 2.0}, 4),
        AttentionRelations([1, 2], ["values"]),
    ],
)
def test_a_description_gives_the_same_loss(loss):
    again = from_spec(LayerLoss, spec_of(loss), "loss")
    assert spec_of(again) == spec_of(loss) and again._weights == loss._weights


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AttentionRelations(relations=[]), r"relations=\[\] must be a list of queries, keys, values"),
        (lambda: AttentionRelations(relations="keys"), "relations='keys' must be a list"),
        (lambda: AttentionRelations(relations=["key"]), "names 'key'.*keys"),
        (lambda: AttentionRelations(relations={"keys": -1.0}), "relations.keys=-1.0 must be 0 or more"),
        (lambda: AttentionRelations(relations={"keys": 0.0}), "every weight is 0"),
        (lambda: AttentionRelations(heads=0), "heads=0 must be at least 1"),
        (lambda: AttentionRelations([4]).fit(shape(), shape()), "Tiny has 3 layers"),
        (lambda: AttentionRelations([0]).fit(shape(), shape()), "layer 0 of Tiny has no attention"),
        (
            lambda: AttentionRelations(heads=8).fit(shape(), shape(name="Big")),
            "heads=8 does not divide the width of the keys of Tiny, 12 for all heads",
        ),
        (lambda: AttentionRelations().teacher_layers(), "AttentionRelations does not know its models yet"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(RazorError, match=words):
        make()


def test_memory_is_that_of_a_chunk():
    """The relations of a row alone are 32 MB; no operation allocates anything near that."""
    from torch.profiler import ProfilerActivity, profile

    tokens, heads = 1024, 8
    one = torch.zeros(1, tokens, dtype=torch.long)
    batch = Batch(one, one.clone(), torch.arange(tokens)[None], one.clone())
    own, other = (torch.randn(1, heads, tokens, 4) for _ in range(2))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        relation_kl(own.requires_grad_(), other, batch, chunk=2**20).sum().backward()
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest < 4 * heads * tokens * tokens / 8
