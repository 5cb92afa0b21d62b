"""The loader of a run: an endless-looking stream that starts where the run stands.

Micro-batch i of a run is a pure function of the seed and i (see `razor.data.steps`), and a checkpoint knows
how many optimizer steps are done. So the loader of a resumed run simply begins at the first micro-batch of
the next step; no loader state has to be saved and none can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from razor.data.steps import StepBatches
from razor.distill import Batch


class _From(IterableDataset[Batch]):
    """Micro-batches from `start()` on; `start` is asked when iteration begins."""

    def __init__(self, batches: StepBatches, start: Callable[[], int]) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.start(), len(self.batches)):
            yield self.batches[index]


class StepData(L.LightningDataModule):
    """Feeds the micro-batches of a run to Lightning.

    Args:
        batches: of the whole run.
    """

    def __init__(self, batches: StepBatches) -> None:
        super().__init__()
        self.batches = batches

    def _position(self) -> int:
        steps = self.trainer.global_step if self.trainer is not None else 0
        return steps * self.batches.accumulate

    def train_dataloader(self) -> DataLoader[Batch]:
        """One micro-batch at a time, from the step the trainer stands at."""
        return DataLoader(_From(self.batches, self._position), batch_size=None)

    def transfer_batch_to_device(self, batch: Batch, device: object, dataloader_idx: int) -> Batch:
        """A `Batch` moves itself."""
        return batch.to(device)  # type: ignore[arg-type]
