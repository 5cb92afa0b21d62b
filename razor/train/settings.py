"""How a student is trained: the numbers, checked before anything heavy starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from razor.errors import RazorError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SCHEDULES = ("cosine", "linear", "constant")
ACCELERATORS = ("auto", "cpu", "gpu", "mps")


@dataclass
class TrainSettings:
    """Optimizer, schedule, budget and device of a run (conf/trainer/*.yaml says what each means).

    Raises:
        RazorError: a value outside its range; the text names key, value and choices.
    """

    accelerator: str = "auto"
    compute_dtype: str = "bfloat16"
    max_steps: int = 80
    max_minutes: float | None = None
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: Sequence[float] = (0.9, 0.95)
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float = 1.0
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        for key, choices in (
            ("accelerator", ACCELERATORS),
            ("compute_dtype", DTYPES),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, key) not in choices:
                raise RazorError(f"trainer.{key}='{getattr(self, key)}'. Choices: {', '.join(choices)}.")
        for key in ("max_steps", "accumulate", "checkpoint_every"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise RazorError(
                    f"trainer.{key}='{getattr(self, key)}' must be a whole number of at least 1."
                )
        for key in ("learning_rate", "weight_decay", "warmup", "clip", "max_minutes"):
            value = getattr(self, key)
            if not isinstance(value, (int, float)) and not (key == "max_minutes" and value is None):
                raise RazorError(f"trainer.{key}='{value}' must be a number.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise RazorError(f"trainer.max_minutes='{self.max_minutes}' must be more than 0, or null.")
        if not 0 <= self.warmup <= 1:
            raise RazorError(f"trainer.warmup='{self.warmup}' is a part of the steps: 0..1.")
        if not self.weight_decay >= 0:
            raise RazorError(f"trainer.weight_decay='{self.weight_decay}' must be 0 or more.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RazorError(f"trainer.betas={list(self.betas)} must be two numbers from 0 to below 1.")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise RazorError("trainer.learning_rate and trainer.clip must be more than 0.")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise RazorError("trainer=gpu, but this machine shows torch no GPU; trainer=auto or trainer=cpu.")

    @property
    def dtype(self) -> torch.dtype:
        """`compute_dtype` as torch's."""
        return DTYPES[self.compute_dtype]

    @property
    def device(self) -> torch.device:
        """The device that `accelerator` means here."""
        if self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available()):
            return torch.device("cuda", torch.cuda.current_device())
        if self.accelerator == "mps" or (self.accelerator == "auto" and torch.backends.mps.is_available()):
            return torch.device("mps")
        return torch.device("cpu")

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at `step` (from 0) of `steps`: linear warm-up, then the schedule."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        progress = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return max(0.0, 1 - progress) if self.schedule == "linear" else 1.0
