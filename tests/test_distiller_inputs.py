"""Hugging Face's tensors as a `Batch`: labels shifted, padding a document of its own, and all that can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from razor.distiller import batch_of
from razor.errors import RazorError

IDS = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0))


def test_batches_are_what_they_should_be() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 9, 3, 4, 5, 9, 9]])
    documents = torch.tensor([[4, 4, 4, 2, 2, 2, 2], [-1, -1, 4, 4, 4, -1, -1]])
    batch = batch_of(ids, ids, 10, documents=documents)
    assert batch.labels.tolist() == [[2, 3, -100, 5, 6, 7, -100], [-100, -100, 4, 5, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 2, 0, 1]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1], [-1, -1, 2, 2, 2, -1, -1]]
    assert batch.share == 1.0
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [1, 1, 0, 1, 2, 1, 1]])  # any numbers on padding
    same = batch_of(ids, ids, 10, attention_mask=mask, position_ids=positions)
    for name in ("labels", "position_ids", "documents"):
        assert torch.equal(getattr(same, name), getattr(batch, name)), name


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_what_loops_make_of_them(seed: int) -> None:
    """Rows of random documents with padding anywhere, told by documents, and by positions and a mask."""
    chance = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=chance))

    ids = torch.randint(0, 10, (3, 16), generator=chance)
    labels = torch.where(torch.rand(3, 16, generator=chance) < 0.2, -100, ids)
    given, expected = torch.full((3, 16), -1), torch.full((3, 16), -1)
    positions, shifted = torch.zeros(3, 16, dtype=torch.long), torch.full((3, 16), -100)
    count = 0
    for row in range(3):
        column, number = 0, 50
        while column < 16:
            length = min(drawn(2, 7), 16 - column)
            padding = column > 0 and drawn(0, 2) == 0 and given[row, column - 1] >= 0
            positions[row, column : column + length] = torch.arange(length)
            if not padding:
                given[row, column : column + length] = number
                expected[row, column : column + length] = count
                for place in range(column, column + length - 1):
                    shifted[row, place] = labels[row, place + 1]
                count, number = count + 1, number - drawn(1, 3)
            column += length
    if (shifted == -100).all(1).any():
        with pytest.raises(RazorError, match="has no token with a loss"):
            batch_of(ids, labels, 10, documents=given)
        return
    noise = torch.where(given < 0, 3, positions)
    for told in ({"documents": given}, {"position_ids": noise, "attention_mask": (given >= 0).long()}):
        batch = batch_of(ids, labels, 10, **told)
        assert torch.equal(batch.labels, shifted) and torch.equal(batch.documents, expected)
        assert torch.equal(batch.position_ids, positions) and torch.equal(batch.input_ids, ids)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": IDS[:, :-1]}, r"labels has shape \[2, 5\]; .* like input_ids \[2, 6\]"),
        ({"input_ids": IDS[0], "labels": IDS[0]}, r"input_ids has shape \[6\]"),
        ({"input_ids": IDS[:, :1], "labels": IDS[:, :1]}, r"shape \[2, 1\]: a row needs two tokens"),
        ({"input_ids": IDS.float()}, r"input_ids has dtype torch\.float32; it must be torch\.int64"),
        ({"labels": IDS.bool()}, r"labels has dtype torch\.bool"),
        ({"labels": [[1]]}, "labels must be a tensor, not list"),
        ({"input_ids": IDS + 270}, r"input_ids holds \d+; the model's tokens are 0\.\.271\."),
        ({"input_ids": -IDS - 1}, r"input_ids holds -\d+; "),
        ({"labels": IDS.clamp(max=0) - 1}, r"labels holds -1; the model's tokens are 0\.\.271 or -100"),
        ({"labels": torch.where(torch.arange(2)[:, None] == 1, -100, IDS)}, "labels: row 1 has no token"),
        ({"labels": torch.where(torch.arange(6) > 0, -100, IDS)}, "labels: row 0 has no token with a loss"),
        ({"attention_mask": torch.zeros_like(IDS)}, "labels: row 0 has no token with a loss"),
        ({"attention_mask": torch.full_like(IDS, 2)}, r"attention_mask must hold 1 \(text\) and 0 \(padding\)"),
        ({"attention_mask": torch.ones(2, 1, 6, 6)}, r"attention_mask has shape \[2, 1, 6, 6\]"),
        ({"attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 1, 1, 1]])}, "row 1 has padding between text"),
        ({"position_ids": torch.arange(1, 7).expand(2, 6)}, r"position_ids\[0, 0\] is 1 where 0 follows"),
        ({"position_ids": torch.tensor([[0, 1, 2, 4, 5, 6]] * 2)}, r"position_ids\[0, 3\] is 4 where 3 follows"),
        ({"documents": torch.tensor([[0, 0, 1, 1, 0, 0]] * 2)}, "document 0 of row 0 is in several pieces"),
        (
            {"documents": torch.zeros_like(IDS), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)},
            "document 0 of row 0 is in several pieces",
        ),
        (
            {"documents": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2), "position_ids": torch.arange(6).expand(2, 6)},
            r"position_ids\[0, 3\] is 3 where 0 follows",
        ),
        (
            {"documents": torch.zeros_like(IDS), "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]] * 2)},
            "attention_mask and documents disagree",
        ),
        ({"labels": IDS.to("meta")}, "labels is on meta, input_ids on cpu"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RazorError, match=words) as problem:
        batch_of(**{"input_ids": IDS, "labels": IDS, "vocabulary": 272} | given)
    assert "\n" not in str(problem.value)
