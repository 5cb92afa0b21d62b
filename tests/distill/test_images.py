"""Losses on images: every place of a feature map counts alike, and no loss has to know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from razor.distill import (
    AdaptiveFeatures,
    AttentionInputs,
    AttentionRelations,
    Batch,
    CrossEntropy,
    FixedFeatures,
    ForwardKL,
    ImageBatch,
    Objective,
    Shape,
    Trace,
)
from razor.distill.relations import relation_kl
from razor.distill.similarity import linear_cka
from razor.errors import RazorError

IMAGES, CLASSES = 5, 4


def images() -> ImageBatch:
    return ImageBatch.of(torch.randn(IMAGES, 1, 8, 8), torch.arange(IMAGES) % CLASSES)


def shape(widths: tuple[int, ...], places: tuple[int, ...], **more: int) -> Shape:
    given = {"heads": 0, "kv_heads": 0, "head_dim": 1} | more
    return Shape("net", len(widths) - 1, widths[-1], widths=widths, places=places, **given)


def test_an_image_is_one_sample_inside_and_out() -> None:
    batch = images()
    assert batch.tokens == IMAGES and batch.valid.shape == (IMAGES, 1)
    assert torch.equal(batch.token_weights(), torch.full((IMAGES,), 1 / IMAGES))
    inner = batch.inside(9)
    assert inner.valid.shape == (IMAGES, 9) and inner.valid.all() and not inner.causal
    assert torch.allclose(inner.token_weights(), torch.full((IMAGES * 9,), 1 / (IMAGES * 9)))
    moved = batch.to("meta")
    assert {x.device.type for x in (moved.pixel_values, moved.labels, moved.documents)} == {"meta"}


def test_text_is_inside_what_it_is_outside() -> None:
    ids = torch.zeros(1, 3, dtype=torch.long)
    batch = Batch(ids, ids, ids, torch.tensor([[0, 0, -1]]))
    assert batch.inside(3) is batch and batch.causal
    assert batch.examples(torch.arange(6.0).reshape(1, 3, 2)).tolist() == [[0, 1], [2, 3]]


def traces(places: tuple[int, ...], widths: tuple[int, ...]) -> tuple[Trace, Trace]:
    found = []
    for _ in range(2):
        states = {
            i: torch.randn(IMAGES, p, w, requires_grad=True)
            for i, (p, w) in enumerate(zip(places, widths, strict=True))
        }
        hidden = torch.randn(IMAGES, 1, widths[-1], requires_grad=True)
        found.append(Trace(hidden, torch.randn(CLASSES, widths[-1]), torch.randn(CLASSES), states))
    return found[0], found[1]


def test_the_objective_is_what_plain_torch_says() -> None:
    """Logits of one vector an image, features of all places, of layers that differ in shape."""
    torch.manual_seed(0)
    widths, places, batch = (3, 3, 6), (16, 16, 4), images()
    student, teacher = traces(places, widths)
    losses = {"ce": CrossEntropy(), "kl": ForwardKL(), "maps": FixedFeatures([1, 2])}
    objective = Objective(losses, {"ce": 1.0, "kl": 2.0, "maps": 0.5})
    objective.fit(shape(widths, places), shape(widths, places))
    seen = objective.observe(teacher, batch)
    total, parts = objective(student, teacher, batch, seen)

    own, other = (
        (t.hidden[:, 0] @ t.head_weight.T + t.head_bias).log_softmax(-1) for t in (student, teacher)
    )
    ce = torch.nn.functional.nll_loss(own, batch.labels[:, 0])
    kl = (other.exp() * (other - own)).sum(-1).mean()
    maps = sum((student.states[i] - teacher.states[i]).square().mean() for i in (1, 2)) / 2
    assert parts == pytest.approx({"ce": ce.item(), "kl": kl.item(), "maps": maps.item()}, rel=1e-5)
    assert float(total.detach()) == pytest.approx((ce + 2 * kl + 0.5 * maps).item(), rel=1e-5)
    total.backward()
    expected = (student.states[1] - teacher.states[1]).detach() * 0.5 * 2 / 2 / student.states[1].numel()
    assert torch.allclose(student.states[1].grad, expected, atol=1e-7)


def test_patches_relate_to_all_of_their_image() -> None:
    torch.manual_seed(1)
    own, other = torch.randn(IMAGES, 2, 7, 3, requires_grad=True), torch.randn(IMAGES, 2, 7, 5)
    batch = images().inside(7)

    def relations(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors @ vectors.mT / vectors.shape[-1] ** 0.5).log_softmax(-1)

    expected = (relations(other).exp() * (relations(other) - relations(own))).sum(-1).mean(1).flatten()
    found = relation_kl(own, other, batch, chunk=200)  # in many pieces
    assert torch.allclose(found, expected, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), own)
    (given,) = torch.autograd.grad(found.sum(), own)
    assert torch.allclose(given, wanted, atol=1e-6)


def test_attention_relations_of_a_vision_transformer() -> None:
    batch, model = images(), replace(shape((4, 4), (7, 7), heads=2, kv_heads=2, head_dim=2), attention={1})
    loss = AttentionRelations([1])
    loss.fit(model, model)
    made = [AttentionInputs(*(torch.randn(IMAGES, 2, 7, 2) for _ in range(3))) for _ in range(2)]
    assert loss.per_token(made[0], made[0], batch.inside(7)).abs().max() < 1e-6
    assert loss.per_token(made[0], made[1], batch.inside(7)).min() > 0


def test_cka_sees_through_rotation_scale_and_width() -> None:
    torch.manual_seed(2)
    first = torch.randn(20, 6)
    turned = 3 * first @ torch.linalg.qr(torch.randn(6, 6)).Q + 5
    assert float(linear_cka(first, turned)) == pytest.approx(1, abs=1e-5)
    second = torch.randn(20, 50)
    a, b = first - first.mean(0), second - second.mean(0)
    definition = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert float(linear_cka(first, second)) == pytest.approx(float(definition), rel=1e-5)
    assert float(definition) < 0.9
    assert float(linear_cka(first, torch.ones(20, 3))) == 1.0  # which tells no example from another


def test_afd_follows_the_stages_that_change_most() -> None:
    widths, places, batch = (3, 6, 6, 5), (16, 4, 4, 2), images()
    torch.manual_seed(3)
    _, teacher = traces(places, widths)
    states = dict(teacher.states)
    states[2] = 2 * states[1]  # stage 2 does nothing but scale
    loss = AdaptiveFeatures(top=2, ranking="cka")
    loss.fit(shape(widths, places), shape(widths, places))
    assert set(loss.select(replace(teacher, states=states), batch)) == {1, 3}


def test_cosine_wants_layers_that_keep_their_shape() -> None:
    stages = shape((3, 6), (16, 4))
    with pytest.raises(RazorError, match=r"widths 3, 6\): ranking=cka"):
        AdaptiveFeatures(top=1).fit(stages, stages)
    even = shape((6, 6), (9, 9))
    AdaptiveFeatures(top=1).fit(even, even)


def test_maps_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(
        RazorError, match="hidden state 1 of net has 4 places of width 6, state 1 of net 4 of 8"
    ):
        FixedFeatures([1]).fit(shape((3, 6), (16, 4)), shape((3, 8), (16, 4)))
    with pytest.raises(RazorError, match="projection=linear"):
        FixedFeatures([1]).fit(shape((6, 6), (9, 9)), shape((8, 8), (9, 9)))
