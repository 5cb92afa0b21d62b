"""A batch as a tower sees it, and losses on towers, held against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch

from razor.distill import AdaptiveFeatures, FixedFeatures, MediaBatch, Needs, Objective, Shape, Trace
from razor.errors import RazorError


def batch(kinds: list[list[int]]) -> MediaBatch:
    stands = torch.tensor(kinds)
    ids, rows = torch.zeros_like(stands), torch.arange(len(kinds)).unsqueeze(1).expand_as(stands)
    return MediaBatch(ids, torch.full_like(ids, -100), ids, rows, kinds=stands, media={"x": torch.ones(2)})


def shape(**towers: Shape) -> Shape:
    return Shape("m", 2, 4, 1, 1, 4, towers=towers)


TOWER = Shape("t", 2, 3, 1, 1, 3, widths=(3, 3, 5))


def test_places_belong_to_the_documents_of_their_tokens() -> None:
    """Four places a token before they are merged, one after; a row without an image has none."""
    seen = batch([[1, 0, 1, 0], [0, 0, 0, 3], [1, 0, 0, 0]]).tower("vision")
    assert seen.documents.tolist() == [[0, 0, 2]]
    assert seen.inside(12).documents.tolist() == [[0] * 8 + [2] * 4]
    assert seen.inside(12).token_weights().tolist() == pytest.approx([1 / 16] * 8 + [1 / 8] * 4)
    assert batch([[1, 0], [0, 3]]).tower("audio").documents.tolist() == [[1]]
    assert batch([[1, 0], [0, 3]]).to("cpu").media["x"].tolist() == [1, 1]


def test_examples_are_documents() -> None:
    seen = batch([[1, 0], [1, 0]]).tower("vision")
    state = torch.arange(4.0).reshape(1, 4, 1)
    assert seen.examples(state).tolist() == [[0.5], [2.5]]


def test_a_loss_on_a_tower_is_the_mean_over_documents_of_means_over_places() -> None:
    loss = FixedFeatures(tower="vision")
    objective = Objective({"vision": loss}, {"vision": 1.0})
    objective.fit(shape(vision=TOWER), None)
    assert objective.teacher_needs() == Needs(towers=frozenset({("vision", 2)}))
    own, theirs = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    own[0, :, 0] = torch.tensor([5.0, 5.0, 10.0])  # squares over the width: 5, 5, 20
    hidden, head = torch.zeros(3, 4, 4), torch.zeros(7, 4)
    taught = Trace(hidden, head, towers={("vision", 2): theirs})
    given = batch([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    seen = objective.observe(taught, given)
    total, parts = objective(Trace(hidden, head, towers={("vision", 2): own}), taught, given, seen)
    assert float(total) == parts["vision"] == pytest.approx((5 + 20) / 2)


def test_nothing_to_read_is_no_loss() -> None:
    objective = Objective({"audio": FixedFeatures(tower="audio")}, {"audio": 1.0})
    objective.fit(shape(audio=TOWER), None)
    empty = Trace(torch.zeros(1, 2, 4, requires_grad=True), torch.zeros(7, 4))
    given = batch([[1, 0]])
    total, parts = objective(empty, empty, given, objective.observe(empty, given))
    total.backward()
    assert float(total) == 0 and parts == {"audio": 0.0}


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(RazorError, match=r"tower=audio, but m has no such tower. Choices: vision"):
        FixedFeatures(tower="audio").fit(shape(vision=TOWER), shape(vision=TOWER))
    with pytest.raises(RazorError, match=r"layers of t change their shape \(widths 3, 3, 5\): ranking=cka"):
        AdaptiveFeatures(top=1, tower="vision").fit(shape(vision=TOWER), shape(vision=TOWER))
    same = Shape("t", 1, 3, 1, 1, 3, widths=(3, 3))
    loss = AdaptiveFeatures(top=1, tower="vision")
    loss.fit(shape(vision=same), shape(vision=same))
    states = {("vision", 0): torch.zeros(1, 4, 3), ("vision", 1): torch.zeros(1, 1, 3)}
    with pytest.raises(RazorError, match=r"makes \[1, 1, 3\] of \[1, 4, 3\]"):
        loss.select(Trace(torch.zeros(1, 1, 4), torch.zeros(7, 4), towers=states), batch([[1, 0]]))
