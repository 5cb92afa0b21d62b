"""Checkpoints that a kill cannot spoil, and an orderly end on Ctrl-C.

A checkpoint is written to a temporary file and moved into place, so `last.ckpt` is always whole; the one before
stays as `previous.ckpt`, for the day a disk spoils the last. It holds student, optimizer, schedule, plan, random
states and position, never the teacher. Ctrl-C and SIGTERM let the step in hand finish, save, and stop; a second
Ctrl-C stops at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy

from razor import processes
from razor.errors import RazorError
from razor.storage import atomic_write
from razor.train.module import DistillModule

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
SIGNS = ("No space left", "PytorchStreamWriter", "unexpected pos", "iostream error")
"""What torch says of a full disk, depending on where in the file it is noticed."""
TWICE = 2.0
"""Seconds before a second signal means it: a terminal and torchrun both pass one Ctrl-C on to several processes."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside, then move into place; what was there becomes `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local path.

        Raises:
            RazorError: the disk is full; an older checkpoint at `path` is kept.
        """
        path = Path(path)
        with atomic_write(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch hides ENOSPC in a RuntimeError of its zip writer
                raise OSError(28, str(error)) if _disk_is_full(error) else error from error
            if path.name == LAST and path.is_file():
                os.replace(path, path.with_name(PREVIOUS))


def _disk_is_full(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in SIGNS)


class Checkpoints(L.Callback):
    """Saves `last.ckpt` every `every` optimizer steps, at the last one, and when asked to stop.

    Args:
        folder: where it lies.
        every: optimizer steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / LAST, every
        self.asked = False
        self._since, self._first = 0.0, 0
        self._before: dict[int, Any] = {}
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to Ctrl-C and SIGTERM, after Lightning, whose own answer to SIGTERM would save nothing."""
        self._seen = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # a machine that shuts down sends SIGTERM to whole families, who pass it on: only Ctrl-C is ever meant twice
        twice = number == signal.SIGINT == self._first
        if self.asked and twice and (processes.world() == 1 or now - self._since > TWICE):
            raise KeyboardInterrupt
        if not self.asked:
            print("\nStopping after this step (Ctrl-C again: at once) ...", flush=True)
        self.asked, self._since, self._first = True, self._since or now, self._first or number

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DistillModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when it is time; only whole optimizer steps are saved."""
        step = trainer.global_step
        if step == self._seen:  # still accumulating
            return
        self._seen = step
        pl_module.interrupted = processes.anywhere(self.asked)  # a signal may have reached one process alone
        trainer.should_stop = trainer.should_stop or pl_module.interrupted
        if step % self.every == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not isinstance(trainer.strategy, DeepSpeedStrategy):
            trainer.save_checkpoint(self.path)
            return
        new = self.path.with_name("new.ckpt")  # a folder that all processes write into
        trainer.save_checkpoint(new)
        if processes.rank() == 0:
            shutil.rmtree(self.path.with_name(PREVIOUS), ignore_errors=True)
            if self.path.exists():
                self.path.rename(self.path.with_name(PREVIOUS))
            new.rename(self.path)
        processes.wait()

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


def newest(folder: Path, whole_files: bool = True) -> Path | None:
    """The checkpoint to resume from, the newest that is whole; None if the run was stopped before its first.

    A damaged one is said, and the one before it is taken.

    Args:
        folder: of the checkpoints.
        whole_files: whether the strategy reads files; DeepSpeed reads folders.

    Raises:
        RazorError: there are some, but none can be read.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists() and path.is_dir() == whole_files:
            raise RazorError(
                f"'{path}' was written {'by' if whole_files else 'without'} DeepSpeed: continue the run "
                f"{'with' if whole_files else 'without'} trainer.strategy=deepspeed_zero2."
            )
        if not os.path.lexists(path):  # a link that leads nowhere is not nothing
            continue
        try:
            _read(path)
        except Exception as error:  # whatever a torn file may be to zip, pickle and torch
            problems.append(f"'{path}' is damaged ({type(error).__name__})")
            continue
        if problems:
            print(f"The checkpoint {problems[0]}; the one before it is whole and is taken.", flush=True)
        return path
    if problems:
        raise RazorError(f"The checkpoint {' and '.join(problems)}; remove it to start the run over.")
    return None


def _read(path: Path) -> None:
    if path.is_dir():  # DeepSpeed's, a file per process: its name was given last
        return
    with zipfile.ZipFile(path) as archive:  # which is what torch writes, with checksums it does not read
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)
    torch.load(path, map_location="meta", mmap=True, weights_only=True)
