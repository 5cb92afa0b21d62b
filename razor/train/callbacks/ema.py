"""An exponential moving average of the student's weights (Polyak averaging).

    average <- decay * average + (1 - decay) * weight     after every `every` optimizer steps, from `start` on

A latent weight near a rounding threshold flips back and forth with every step; its average sits on one side. So
the codes of averaged latents are calmer than those of the last step, most of all where the learning rate has not
decayed to nothing. The average begins as a copy of the weights. Learned scales are averaged as they are trained,
as logarithms.

Memory: one more fp32 copy of the student, in the process and in its checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from razor.errors import RazorError
from razor.train.callbacks.base import (
    RunCallback,
    RunFacts,
    check_every,
    check_part,
    check_whole,
    completed,
    settled,
)


class EMA(RunCallback):
    """Averages latent weights and learned scales.

    Args:
        decay: of the average, 0..1; it looks back about 1 / (1 - decay) updates.
        start: part of the run, 0..1, after which it begins; where bits change, not before the last change.
        every: optimizer steps between updates.
        use: whether the average is the student that is scored, packed and reported.

    Raises:
        RazorError: an argument out of range.
    """

    def __init__(self, decay: float = 0.99, start: float = 0.5, every: int = 1, use: bool = True) -> None:
        super().__init__()
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < 1:
            raise RazorError(f"callbacks.ema.decay='{decay}' must lie between 0 and 1.")
        check_every("ema", every)
        self.decay, self.every, self.use = float(decay), every, use
        self.start = check_part("ema.start", start)
        self.average: dict[str, Tensor] = {}

    def check(self, run: RunFacts) -> None:  # noqa: D102 - see RunCallback
        check_whole("ema", run.student.parameters(), "averages")

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Begin, or move the average."""
        first = max(1, math.ceil(self.start * trainer.max_steps))
        if step < first or not settled(trainer):
            return
        weights = {name: parameter.detach() for name, parameter in _trained(pl_module)}
        if not self.average:
            self.average = {name: weight.clone() for name, weight in weights.items()}
        elif step % self.every == 0:
            average = [self._beside(name, weight) for name, weight in weights.items()]
            torch._foreach_lerp_(average, list(weights.values()), 1 - self.decay)

    def _beside(self, name: str, weight: Tensor) -> Tensor:
        """The average of a weight on its device; a checkpoint brings it on the CPU."""
        if self.average[name].device != weight.device:
            self.average[name] = self.average[name].to(weight.device)
        return self.average[name]

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in the place of the weights, before the student is scored."""
        if not self.use or not completed(pl_module):
            return
        if not self.average:
            print(
                "callbacks.ema: the run ended before the average began, so the student is the last one.",
                flush=True,
            )
            return
        for name, parameter in _trained(pl_module):
            parameter.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.average = state_dict["average"]


def _trained(pl_module: L.LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    student: Any = pl_module.student
    return [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
