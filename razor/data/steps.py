"""Which rows make which micro-batch of which optimizer step, for a whole run at once.

A run that can be resumed exactly must not depend on what a loader happened to do before. Here the
sequence of micro-batches is a plain function: micro-batch i of a run is decided by the seed and i
alone. Epoch e shuffles the rows by a permutation drawn from (seed, e); the epochs follow one
another in one endless stream, from which each micro-batch takes its rows. A loader over this
dataset needs no state but a number.

**Accumulation.** A loss is a mean over documents. If one micro-batch of a step holds 3 documents
and another 1, the mean of their means is not the mean over the 4. `Batch.share` repairs it:
documents here over the mean number of documents per micro-batch of the step, over all processes.
Multiply the loss by it, average over micro-batches and processes as usual, and the step equals one
large batch.

**Buckets.** With `bucketed` rows, the shuffled rows of an epoch are taken 64 micro-batches at a time and sorted by
length within these; each micro-batch gets neighbours, and the micro-batches are shuffled again. So rows of similar
length come together, the steps of a run still see all lengths, and the order is still a function of seed and epoch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from razor.data.rows import Rows
from razor.distill.batch import Samples
from razor.errors import RazorError

BUCKETS = 64
"""Micro-batches whose rows are sorted by length together."""


class StepBatches(Dataset[Samples]):
    """Map-style dataset: item i is micro-batch i of the run, `max_steps * accumulate` in all.

    Use it with `DataLoader(..., batch_size=None, shuffle=False)` (torchdata's StatefulDataLoader
    too).

    Args:
        rows: what to train on.
        max_steps: optimizer steps of the run.
        rows_per_batch: rows in a micro-batch.
        accumulate: micro-batches (of one process) in an optimizer step.
        seed: decides the order of the rows.
        rank, world: this process and the number of them; each gets its own micro-batches.

    Raises:
        RazorError: no rows, or a count below 1.
    """

    def __init__(
        self,
        rows: Rows,
        max_steps: int,
        rows_per_batch: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        counts = {
            "max_steps": max_steps,
            "rows_per_batch": rows_per_batch,
            "accumulate": accumulate,
        }
        for name, value in counts.items():
            if value < 1:
                raise RazorError(f"{name}={value} must be at least 1.")
        if not len(rows):
            raise RazorError(
                "There are no rows to train on: the data source gave no document with a token to learn."
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} processes")
        self.rows = rows
        self.max_steps = max_steps
        self.rows_per_batch = rows_per_batch
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world = world
        self._lengths = rows.lengths() if rows.bucketed else None
        self._orders: dict[int, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        return self.max_steps * self.accumulate

    def __getitem__(self, index: int) -> Samples:
        """Micro-batch `index` of this process, with its share of its optimizer step."""
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        step, part = divmod(index, self.accumulate)
        of_step = self.accumulate * self.world
        first = step * of_step
        counts = [self._documents(first + place) for place in range(of_step)]
        mine = part * self.world + self.rank
        batch = self.rows.batch(self.row_indices(first + mine))
        return replace(batch, share=counts[mine] * of_step / sum(counts))  # type: ignore[type-var]

    def row_indices(self, micro_batch: int) -> list[int]:
        """The rows of a micro-batch, counted over all processes."""
        start = micro_batch * self.rows_per_batch
        return [self._row_at(place) for place in range(start, start + self.rows_per_batch)]

    @property
    def epochs(self) -> float:
        """How often the run goes through the rows."""
        return len(self) * self.world * self.rows_per_batch / len(self.rows)

    def _documents(self, micro_batch: int) -> int:
        return sum(self.rows.documents_in(row) for row in self.row_indices(micro_batch))

    def _row_at(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.rows))
        if epoch not in self._orders:
            if len(self._orders) > 2:  # a step rarely sees more than two epochs
                self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][offset])

    def _order(self, epoch: int) -> NDArray[np.int32]:
        chance = np.random.default_rng([self.seed, epoch])
        order = chance.permutation(np.arange(len(self.rows), dtype=np.int32))
        if self._lengths is None:
            return order
        size = self.rows_per_batch
        begun = -epoch * len(order) % size  # rows that complete the last micro-batch of the epoch before
        pools = [order[:begun]]
        for start in range(begun, len(order), size * BUCKETS):
            pool = order[start : start + size * BUCKETS]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            whole, rest = np.split(pool, [len(pool) - len(pool) % size])  # only the last pool has a rest
            pools += [chance.permutation(whole.reshape(-1, size)).reshape(-1), rest]
        return np.concatenate(pools)
