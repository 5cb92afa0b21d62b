"""Batches of documents of chosen lengths, and recorded passes of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from razor.distill import IGNORE, Batch, Trace

WIDTH, VOCABULARY = 12, 29


def documents(lengths: Sequence[Sequence[int]], prompt: int, columns: int, seed: int) -> Batch:
    """Rows of documents; the first `prompt` tokens of each carry no loss, its last predicts nothing."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), columns)
    batch = Batch(
        input_ids=torch.randint(0, VOCABULARY, shape, generator=generator),
        labels=torch.full(shape, IGNORE),
        position_ids=torch.zeros(shape, dtype=torch.long),
        documents=torch.full(shape, -1),
    )
    index = 0
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            end = start + size
            batch.documents[row, start:end] = index
            batch.position_ids[row, start:end] = torch.arange(size)
            learns = slice(start + prompt, end - 1)
            batch.labels[row, learns] = batch.input_ids[row, start + prompt + 1 : end]
            start, index = end, index + 1
    return batch


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Make a batch of documents by their lengths, row by row."""

    def make(
        lengths: Sequence[Sequence[int]] = ((9, 4), (6,)), prompt: int = 1, columns: int = 14, seed: int = 0
    ) -> Batch:
        return documents(lengths, prompt, columns, seed)

    return make


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """Make a trace of random numbers for a batch, with hidden states 0..layers."""

    def make(
        batch: Batch, seed: int = 1, bias: bool = False, layers: int = 4, dtype: torch.dtype = torch.float32
    ) -> Trace:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

        states = {index: random(*batch.labels.shape, WIDTH) for index in range(layers + 1)}
        return Trace(states[layers], random(VOCABULARY, WIDTH), random(VOCABULARY) if bias else None, states)

    return make
