"""What a person sees while a student trains: one bar with losses, tokens or images per second and time left."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from tqdm import tqdm

from razor.distill import Samples
from razor.terminal import progress_bar
from razor.train.module import DistillModule

SHORT = {"tokens": "tok/s", "images": "images/s"}
"""What the bar calls their number in a second."""


class Progress(L.Callback):
    """A bar over the optimizer steps.

    Attributes:
        seconds: of training, in this process.
        speed: tokens of text, or images, a second, all processes together; None if no step was made.
    """

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.seconds = 0.0
        self.speed: float | None = None
        self._started, self._tokens = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: DistillModule) -> None:  # type: ignore[override]
        """Open the bar where the run stands."""
        self.bar = progress_bar("distilling", trainer.max_steps, "step", trainer.global_step)
        self._started, self._tokens = time.perf_counter(), pl_module.tokens

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DistillModule, outputs: Any, batch: Samples, batch_idx: int
    ) -> None:
        """Advance by the optimizer steps made."""
        assert self.bar is not None
        if trainer.global_step == self.bar.n:
            return
        self.seconds = time.perf_counter() - self._started
        self.speed = (pl_module.tokens - self._tokens) / self.seconds
        values = {
            name.removeprefix("loss/"): f"{float(value):.3f}"
            for name, value in trainer.logged_metrics.items()
            if name.startswith("loss/")
        }
        pl_module.log(f"{batch.unit}_per_second", self.speed, batch_size=1)
        self.bar.set_postfix(values | {SHORT[batch.unit]: f"{self.speed:.0f}"}, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
