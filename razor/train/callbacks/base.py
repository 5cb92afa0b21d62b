"""What the callbacks of a run have in common.

*Optimizer steps.* Lightning counts micro-batches; here everything happens once per optimizer step, after it
(`after_step`), so accumulation changes nothing. What a callback shows belongs to that step's row of the log alone:
Lightning would repeat a number in every row until it is logged anew, and a resumed run could not know it.

*Errors first.* What can be wrong with a callback is found by `check`, from names and shapes, before anything heavy
runs (`check_callbacks`), and once more with the real student as training begins.

*Exact resume.* A callback either follows from the step alone, or keeps what it needs in its `state_dict`: tensors
and plain data, which a checkpoint can hold without pickled code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import nn

from razor.errors import RazorError
from razor.models.student import quantize_in_place
from razor.quant import Plan


@dataclass(frozen=True)
class RunFacts:
    """What a callback is checked against.

    Attributes:
        student: quantized; on the meta device while nothing has been loaded.
        teacher: whether one runs beside the student.
        steps: optimizer steps of the run; None while a budget in minutes has not been turned into steps.
        callbacks: all of the run.
        processes: how many train together.
    """

    student: nn.Module
    teacher: bool
    steps: int | None
    callbacks: Sequence[L.Callback] = ()
    processes: int = 1

    def others(self, kind: type[L.Callback], who: L.Callback) -> list[L.Callback]:
        """Callbacks of a kind other than `who`."""
        return [callback for callback in self.callbacks if isinstance(callback, kind) and callback is not who]


class RunCallback(L.Callback):
    """Base: acts after optimizer steps, checks itself, shows numbers for one step."""

    def __init__(self) -> None:
        self._seen = 0
        self._shown: set[str] = set()

    def check(self, run: RunFacts) -> None:
        """Raise RazorError if this callback cannot do its work in such a run; cheap, works on meta tensors."""

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """An optimizer step is done, the `step`-th, from 1."""

    def on_held_out(
        self, trainer: L.Trainer, pl_module: L.LightningModule, scores: Mapping[str, float], step: int
    ) -> None:
        """The student as it is after optimizer step `step` was scored on held-out text (see `HeldOutScores`)."""

    def show(self, pl_module: L.LightningModule, values: Mapping[str, float]) -> None:
        """Log numbers in the row of this step, and of no other."""
        self._shown |= set(values)
        pl_module.log_dict(dict(values), on_step=True, on_epoch=False, batch_size=1)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check with the real student."""
        student: Any = pl_module.student
        teacher = getattr(pl_module, "teacher", None) is not None
        callbacks: list[L.Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
        self.check(RunFacts(student, teacher, trainer.max_steps, callbacks, trainer.world_size))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from where the run stands."""
        self._seen = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let go of what the last step showed."""
        if self._shown and trainer._results is not None:
            for metric in trainer._results.values():
                if metric.meta.name in self._shown:
                    metric.reset()  # Lightning's own mark for "not logged now"
        self._shown.clear()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `after_step` if this micro-batch completed one."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.after_step(trainer, pl_module, self._seen)


def due(step: int, every: int, trainer: L.Trainer) -> bool:
    """Whether `step` is one of every `every`, or the last of the run."""
    return step % every == 0 or step == trainer.max_steps


def check_every(name: str, every: Any) -> None:
    """Raise RazorError unless `every` counts steps."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise RazorError(
            f"callbacks.{name}.every='{every}' must be a whole number of at least 1 (optimizer steps)."
        )


def check_part(key: str, value: Any) -> float:
    """A part of the run.

    Raises:
        RazorError: not a number in 0..1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise RazorError(f"callbacks.{key}='{value}' must be a part of the run, 0..1.")
    return float(value)


def check_whole(name: str, weights: Iterable[torch.Tensor], why: str) -> None:
    """Raise RazorError if a strategy has cut parameters into pieces."""
    if any(hasattr(weight, "full_tensor") for weight in weights):
        raise RazorError(
            f"callbacks.{name} {why} whole weights, which this trainer splits over processes: trainer=ddp, or "
            "leave it out of callbacks=[...]."
        )


def completed(pl_module: L.LightningModule) -> bool:
    """Whether training came to its end (or a callback ended it), rather than being interrupted."""
    return not getattr(pl_module, "interrupted", False)


def settled(trainer: L.Trainer) -> bool:
    """Whether the student has the formats that it will be packed in (see `BitSchedule`)."""
    return all(getattr(callback, "settled", True) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def check_callbacks(
    callbacks: Mapping[str, L.Callback],
    skeleton: nn.Module,
    plan: Plan,
    teacher: bool,
    steps: int | None,
    processes: int = 1,
) -> None:
    """Check the callbacks of a run before it loads anything.

    Args:
        callbacks: by name.
        skeleton: the model on the meta device.
        plan: of the run.
        teacher: whether one runs beside the student.
        steps: optimizer steps, if they are known.
        processes: how many train together.

    Raises:
        RazorError: one of them cannot do its work in this run.
    """
    own = [callback for callback in callbacks.values() if isinstance(callback, RunCallback)]
    if not own:
        return
    student: Any = copy.deepcopy(skeleton)
    quantize_in_place(student, plan, torch.bfloat16)
    for callback in own:
        callback.check(RunFacts(student, teacher, steps, list(callbacks.values()), processes))
