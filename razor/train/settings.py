"""How a student is trained: the numbers, checked before anything heavy starts."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from razor import processes
from razor.errors import RazorError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SCHEDULES = ("cosine", "linear", "constant")
ACCELERATORS = ("auto", "cpu", "gpu", "mps")
STRATEGIES = ("single", "ddp", "fsdp2", "deepspeed_zero2")
WHOLE = {
    "max_steps": 1,
    "accumulate": 1,
    "checkpoint_every": 1,
    "devices": 1,
    "nodes": 1,
    "loader_workers": 0,
}
"""Whole numbers, and the least they may be."""


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
    accumulate: int | None = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: Sequence[float] = (0.9, 0.95)
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float = 1.0
    checkpoint_every: int = 20
    strategy: str = "single"
    devices: int | None = 1
    nodes: int = 1
    shard_teacher: bool = False
    gradient_checkpointing: bool = False
    offload_activations: bool = False
    loader_workers: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for key, choices in (
            ("accelerator", ACCELERATORS),
            ("compute_dtype", DTYPES),
            ("schedule", SCHEDULES),
            ("strategy", STRATEGIES),
        ):
            if getattr(self, key) not in choices:
                raise RazorError(f"trainer.{key}='{getattr(self, key)}'. Choices: {', '.join(choices)}.")
        for key, least in WHOLE.items():
            value = getattr(self, key)
            if value is None and key in ("accumulate", "devices"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise RazorError(f"trainer.{key}='{value}' must be a whole number of at least {least}.")
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
        self._check_processes()
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise RazorError("trainer=gpu, but this machine shows torch no GPU; trainer=auto or trainer=cpu.")

    def _check_processes(self) -> None:
        """Raise RazorError if the strategy and the number of processes contradict each other."""
        if self.strategy == "single" and (self.devices != 1 or self.nodes != 1):
            raise RazorError(
                f"trainer.devices={self.devices} trainer.nodes={self.nodes} need trainer.strategy=ddp or fsdp2 "
                "(trainer=ddp, trainer=fsdp2); strategy=single is one process."
            )
        if self.strategy == "deepspeed_zero2" and not installed("deepspeed"):
            raise RazorError(
                "trainer.strategy=deepspeed_zero2 needs a package: pip install deepspeed (GPUs only). "
                "Without it: trainer=fsdp2, which cuts the weights too."
            )
        if self.shard_teacher and self.strategy != "fsdp2":
            raise RazorError(
                f"trainer.shard_teacher=true is for trainer.strategy=fsdp2, not {self.strategy}."
            )
        if self.strategy == "fsdp2" and self.max_minutes is not None:
            raise RazorError(
                "trainer.max_minutes is counted in steps by trying some on one device, which fsdp2 is not for: "
                "give trainer.max_steps (razor estimate says how long it takes)."
            )
        if self.strategy != "single" and self.on_gpu and self.here > max(1, torch.cuda.device_count()):
            raise RazorError(
                f"{self.here} processes on this machine, and torch sees {torch.cuda.device_count()} GPUs: "
                "trainer.devices=null takes one each."
            )
        if self.strategy == "single" and processes.world() > 1:
            raise RazorError(
                f"torchrun started {processes.world()} processes, and trainer.strategy=single is one: "
                "trainer=ddp or trainer=fsdp2."
            )

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on CUDA."""
        return self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())

    @property
    def here(self) -> int:
        """Processes on one machine: those that torchrun started, or what `devices` means."""
        if processes.started():
            return processes.local_world()
        if self.devices is None:
            return max(1, torch.cuda.device_count()) if self.on_gpu else 1
        return self.devices

    @property
    def processes(self) -> int:
        """Of the whole run, on all machines."""
        return processes.world() if processes.started() else self.here * self.nodes

    @property
    def micro_batches(self) -> int:
        """Of an optimizer step, in all processes together."""
        return self.processes if self.accumulate is None else self.accumulate

    @property
    def dtype(self) -> torch.dtype:
        """`compute_dtype` as torch's."""
        return DTYPES[self.compute_dtype]

    @property
    def device(self) -> torch.device:
        """The device that `accelerator` means here."""
        if self.on_gpu:
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


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
