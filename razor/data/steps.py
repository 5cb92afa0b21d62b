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
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from razor.data.packing import PackedRows, collate
from razor.distill.batch import Batch
from razor.errors import RazorError


class StepBatches(Dataset[Batch]):
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
        rows: PackedRows,
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
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return self.max_steps * self.accumulate

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch `index` of this process, with its share of its optimizer step."""
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        step, part = divmod(index, self.accumulate)
        of_step = self.accumulate * self.world
        first = step * of_step
        counts = [self._documents(first + place) for place in range(of_step)]
        mine = part * self.world + self.rank
        batch = collate([self.rows[row] for row in self.row_indices(first + mine)])
        return replace(batch, share=counts[mine] * of_step / sum(counts))

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
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            self._orders[epoch] = order
        return int(self._orders[epoch][offset])
