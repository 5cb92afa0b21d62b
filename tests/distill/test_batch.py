from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.distill import IGNORE, Batch


def weights_by_hand(batch: Batch) -> list[float]:
    """One valid token after the other: 1 / (tokens of its document * documents with a loss)."""
    owners = [
        int(d)
        for d, label in zip(batch.documents.flatten(), batch.labels.flatten(), strict=True)
        if label != IGNORE
    ]
    return [1 / (owners.count(owner) * len(set(owners))) for owner in owners]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3), min_size=1, max_size=4),
    prompt=st.integers(0, 4),
)
def test_a_document_counts_once_however_long(make_batch, lengths, prompt):
    batch = make_batch(lengths, prompt, columns=30)
    weights = batch.token_weights()
    assert batch.tokens == len(weights) == int(batch.valid.sum())
    torch.testing.assert_close(weights, torch.tensor(weights_by_hand(batch)))
    if batch.tokens:
        assert float(weights.sum()) == pytest.approx(1)


def test_nothing_valid_gives_no_weights(make_batch):
    batch = make_batch([[1], [2]], prompt=2)
    assert batch.tokens == 0 and batch.token_weights().shape == (0,)


def test_to_moves_every_tensor_and_keeps_the_share(make_batch):
    batch = make_batch()
    batch.share = 0.7
    moved = batch.to("meta")
    assert moved.share == 0.7 and batch.input_ids.device.type == "cpu"
    assert all(t.is_meta for t in (moved.input_ids, moved.labels, moved.position_ids, moved.documents))
