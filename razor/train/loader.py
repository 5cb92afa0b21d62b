"""The loader of a run: an endless-looking stream that starts where the run stands.

Micro-batch i of a run is a pure function of the seed and i (see `razor.data.steps`), and a checkpoint knows
how many optimizer steps are done. So the loader of a resumed run simply begins at the first micro-batch of
the next step. No state of a loader has to be saved and none can be wrong, with however many workers it reads
ahead, and on however many processes the run goes on: each takes its own micro-batches of every step.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from razor.data.steps import StepBatches
from razor.distill import Samples


class _From(IterableDataset[Samples]):
    """Micro-batches from `start` on; of several workers, each makes every so many-th."""

    def __init__(self, batches: StepBatches, start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Samples]:
        worker = get_worker_info()
        own, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(self.start + own, len(self.batches), stride):
            yield self.batches[index]


class StepData(L.LightningDataModule):
    """Feeds the micro-batches of a run to Lightning.

    Args:
        batches: of the whole run, as this process sees it.
        workers: processes that make batches ahead; 0: made where they are used.
    """

    def __init__(self, batches: StepBatches, workers: int = 0) -> None:
        super().__init__()
        self.batches, self.workers = batches, workers

    def train_dataloader(self) -> DataLoader[Samples]:
        """One micro-batch at a time, from the step the trainer stands at."""
        done = self.trainer.global_step if self.trainer is not None else 0
        return DataLoader(
            _From(self.batches, done * self.batches.accumulate),
            batch_size=None,  # they are batches already
            num_workers=self.workers,
            # its own, or starting workers would draw from the numbers that training draws from
            generator=torch.Generator().manual_seed(self.batches.seed),
        )

    def transfer_batch_to_device(self, batch: Samples, device: object, dataloader_idx: int) -> Samples:
        """A batch moves itself."""
        return batch.to(device)  # type: ignore[arg-type]
