"""Checkpoints that a kill cannot spoil, and an orderly end on Ctrl-C.

A checkpoint is written to a temporary file and moved into place, so `last.ckpt` is always whole. It holds
student, optimizer, schedule and progress, never the teacher. Ctrl-C and SIGTERM let the step in hand finish,
save, and stop; a second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from razor.errors import RazorError
from razor.storage import atomic_write

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, then move into place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local path.

        Raises:
            RazorError: the disk is full; an older checkpoint at `path` is kept.
        """
        with atomic_write(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch hides ENOSPC in a RuntimeError of its zip writer
                raise OSError(28, str(error)) if _disk_is_full(error, temporary) else error from error


def _disk_is_full(error: RuntimeError, path: Path) -> bool:
    text = str(error)
    return "No space left" in text or "PytorchStreamWriter" in text or "unexpected pos" in text


class Checkpoints(L.Callback):
    """Saves `last.ckpt` every `every` optimizer steps, at the last one, and when asked to stop.

    Args:
        folder: where it lies.
        every: optimizer steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / LAST, every
        self.stopped = False
        self._before: dict[int, Any] = {}
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to Ctrl-C and SIGTERM, after Lightning, whose own answer to SIGTERM would save nothing."""
        self._seen = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print("\nStopping after this step (Ctrl-C again: at once) ...", flush=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when it is time; only whole optimizer steps are saved."""
        step = trainer.global_step
        if step == self._seen:  # still accumulating
            return
        self._seen = step
        if step % self.every == 0 or step == trainer.max_steps or self.stopped:
            trainer.save_checkpoint(self.path)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from, or None if the run was stopped before its first.

    Raises:
        RazorError: there is one but it cannot be read.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # which is what torch writes, with checksums it does not read
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:
        raise RazorError(
            f"The checkpoint '{path}' is damaged ({type(error).__name__}); remove it to start the run over."
        ) from error
    return path
