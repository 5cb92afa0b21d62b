from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from razor.data.document import Document
from razor.data.packing import pack
from razor.data.steps import StepBatches
from razor.errors import RazorError


def some_rows(count=7, length=24, seed=0):
    sizes = np.random.default_rng(seed).integers(3, length, count * 2)
    return pack([Document(np.arange(1, n + 1), np.ones(n, dtype=bool)) for n in sizes], length)


def same(a, b) -> bool:
    names = ("input_ids", "labels", "position_ids", "documents")
    return a.share == b.share and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


settings_of_runs = st.fixed_dictionaries(
    {
        "max_steps": st.integers(1, 4),
        "rows_per_batch": st.integers(1, 4),
        "accumulate": st.integers(1, 4),
        "seed": st.integers(0, 3),
    }
)


@settings(deadline=None, max_examples=40)
@given(settings_of_runs, st.integers(1, 3))
def test_shares_of_a_step_make_it_one_large_batch(options, world):
    """The weighted means of all its micro-batches, averaged, are the mean over its documents."""
    rows = some_rows()
    runs = [StepBatches(rows, rank=rank, world=world, **options) for rank in range(world)]
    for step in range(options["max_steps"]):
        part = [run[step * options["accumulate"] + i] for run in runs for i in range(options["accumulate"])]
        losses = [batch.labels[batch.valid].float() for batch in part]
        pairs = zip(part, losses, strict=True)
        ours = sum(b.share * (b.token_weights() * x).sum() for b, x in pairs) / len(part)
        means = [
            loss[batch.documents[batch.valid] == owner].mean()
            for batch, loss in zip(part, losses, strict=True)
            for owner in range(int(batch.documents.max()) + 1)
        ]
        assert ours.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(settings_of_runs)
def test_a_batch_depends_on_its_index_alone(options):
    rows = some_rows()
    run, again = StepBatches(rows, **options), StepBatches(rows, **options)
    assert len(run) == options["max_steps"] * options["accumulate"]
    forwards = [run[i] for i in range(len(run))]
    for index in reversed(range(len(again))):
        assert same(again[index], forwards[index])


def test_longer_runs_begin_like_shorter_ones():
    rows = some_rows()
    short, long = StepBatches(rows, 3, 2, 2), StepBatches(rows, 30, 2, 2)
    assert all(same(short[i], long[i]) for i in range(len(short)))


def test_every_epoch_sees_every_row_once_in_another_order():
    rows = some_rows()
    run = StepBatches(rows, max_steps=len(rows) * 3, rows_per_batch=1, seed=1)
    order = [run.row_indices(i)[0] for i in range(len(run))]
    epochs = [order[i : i + len(rows)] for i in range(0, len(order), len(rows))]
    assert all(sorted(epoch) == list(range(len(rows))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert run.epochs == 3
    other = StepBatches(rows, max_steps=len(rows), seed=2)
    assert [other.row_indices(i)[0] for i in range(len(other))] != epochs[0]


def bucketed_rows(count=300, seed=0):
    sizes = np.random.default_rng(seed).integers(3, 60, count)
    return pack(
        [Document(np.arange(n), np.ones(n, dtype=bool)) for n in sizes], 64, packed=False, bucketed=True
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 90), st.integers(1, 5), st.integers(0, 3))
def test_buckets_see_every_row_once_an_epoch(count, rows_per_batch, seed):
    rows = bucketed_rows(count)
    run = StepBatches(rows, 3 * count, rows_per_batch, seed=seed)
    order = [row for i in range(len(run)) for row in run.row_indices(i)][: 3 * count]
    epochs = [order[i : i + count] for i in range(0, len(order), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    again = StepBatches(rows, 3 * count, rows_per_batch, seed=seed)
    last = len(again) - 1
    assert again.row_indices(last) == run.row_indices(last)  # whatever was asked before


@pytest.mark.parametrize("rows_per_batch", [4, 7])
def test_buckets_hold_rows_of_similar_length(rows_per_batch):
    """In the first epoch and, as the batches of a later one begin elsewhere, also there."""

    def padded(rows):
        run = StepBatches(rows, 1200 // rows_per_batch, rows_per_batch)
        widths = [rows.lengths()[run.row_indices(i)] for i in range(len(run))]
        return sum((w.max() - w).sum() for w in widths) / sum(w.sum() for w in widths)

    rows = bucketed_rows()
    assert padded(rows) < 0.1 < 0.3 < padded(replace(rows, bucketed=False))
    run = StepBatches(rows, 300 // rows_per_batch, rows_per_batch)
    widths = [rows.lengths()[run.row_indices(i)].mean() for i in range(len(run))]
    assert abs(np.corrcoef(widths, range(len(widths)))[0, 1]) < 0.5  # long and short ones take turns


def test_the_order_of_shuffled_rows_is_the_one_it_was():
    """Runs that were begun before have to go on as they were."""
    run = StepBatches(some_rows(), max_steps=30, rows_per_batch=2, seed=5)
    order = [row for i in range(len(run)) for row in run.row_indices(i)]
    count = len(run.rows)
    wanted = [np.random.default_rng([5, epoch]).permutation(count) for epoch in range(60 // count + 1)]
    assert order == np.concatenate(wanted)[:60].tolist()


def test_processes_share_the_rows_between_them():
    rows = some_rows()
    runs = [StepBatches(rows, len(rows), rank=rank, world=2) for rank in (0, 1)]
    seen = Counter(run.row_indices(i * 2 + run.rank)[0] for run in runs for i in range(len(run)))
    assert set(seen.values()) == {2}


def test_loaders_give_the_items_in_order_and_resume():
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    run = StepBatches(some_rows(), 4, 2, 2)
    for loader in (DataLoader(run, batch_size=None), stateful(run, batch_size=None)):
        assert all(same(batch, run[i]) for i, batch in enumerate(loader))
    loader = stateful(run, batch_size=None)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    resumed = stateful(run, batch_size=None)
    resumed.load_state_dict(loader.state_dict())
    assert same(next(iter(resumed)), run[3])


def test_pickles_for_loader_processes():
    run = StepBatches(some_rows(), 2, 2, 2)
    run[1]
    assert same(pickle.loads(pickle.dumps(run))[3], run[3])


@pytest.mark.parametrize("name", ["max_steps", "rows_per_batch", "accumulate"])
def test_counts_below_one(name):
    with pytest.raises(RazorError, match=name):
        StepBatches(some_rows(), **{"max_steps": 2, name: 0})


def test_no_rows_and_no_such_item():
    with pytest.raises(RazorError, match="no rows"):
        StepBatches(pack([], 8), 2)
    run = StepBatches(some_rows(), 2)
    for index in (2, -1):
        with pytest.raises(IndexError):
            run[index]
    with pytest.raises(ValueError):
        StepBatches(some_rows(), 2, rank=1, world=1)
