"""How fast the run is, and what it takes: tokens per second, memory, MFU.

Model FLOPs utilisation (arXiv 2204.02311, appendix B) is the part of the machine's matrix-product speed that ends
up in the products a step has to make: 6 FLOPs per student parameter and token (forward and backward), 2 per teacher
parameter. Whatever else is done, quantizing, softmax, a recomputed layer, counts as nothing, so the number says
what is left to gain. It is of text alone: a convolution multiplies its parameters at every place of an image, so
counting them would say nothing.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from torch import nn

from razor.errors import RazorError
from razor.processes import totals
from razor.quant.anatomy import reads_images
from razor.train.callbacks.base import RunCallback, check_every, due
from razor.train.estimate import speed


class Throughput(RunCallback):
    """Logs `speed/tokens_per_second`, `speed/mfu`, `memory/process_peak_gb` and, on a GPU, `memory/cuda_peak_gb`.

    Of images it is `speed/images_per_second`, and no MFU. Speeds are those since the last row, tokens those of text
    in all processes; GB = 10^9 bytes.

    Args:
        every: optimizer steps between rows.
        peak_flops: FLOP/s of one device in the compute dtype, as its maker states it; "measured" tries bf16
            products for half a second before the first step; None: no MFU.

    Raises:
        RazorError: an argument out of range.
    """

    def __init__(self, every: int = 1, peak_flops: float | str | None = "measured") -> None:
        super().__init__()
        check_every("throughput", every)
        number = isinstance(peak_flops, (int, float)) and not isinstance(peak_flops, bool) and peak_flops > 0
        if peak_flops not in (None, "measured") and not number:
            raise RazorError(
                f"callbacks.throughput.peak_flops='{peak_flops}' must be FLOP/s (such as 9.9e14), "
                "measured, or null."
            )
        self.every, self.peak_flops = every, peak_flops
        self._peak: float | None = None
        self._per_token, self._unit = 0.0, "tokens"
        self._tokens, self._since = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        student, teacher = pl_module.student, getattr(pl_module, "teacher", None)
        self._peak = None
        if not reads_images(student):  # type: ignore[arg-type]
            taught = 0 if teacher is None else 2 * multiplied(teacher)
            self._per_token = 6 * multiplied(student) + taught  # type: ignore[arg-type]
            self._peak = self._device_peak(pl_module.device)
        self._tokens, self._since = 0, time.perf_counter()

    def _device_peak(self, device: torch.device) -> float | None:
        if self.peak_flops == "measured":
            return self._measured(device)
        return self.peak_flops  # type: ignore[return-value]

    @staticmethod
    def _measured(device: torch.device) -> float:
        with torch.random.fork_rng(
            enabled=device.type in ("cpu", "cuda")
        ):  # the run's random numbers are its own
            return speed.matrix_speed(device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count text."""
        self._unit = batch.unit
        self._tokens += int((batch.documents >= 0).sum())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Log, when it is time."""
        if not due(step, self.every, trainer):
            return
        now = time.perf_counter()
        rate = totals([float(self._tokens)])[0] / max(now - self._since, 1e-9)
        values = {f"speed/{self._unit}_per_second": rate}
        if self._peak:
            values["speed/mfu"] = rate * self._per_token / (self._peak * trainer.world_size)
        values["memory/process_peak_gb"] = process_peak() / 1e9
        if pl_module.device.type == "cuda":
            values["memory/cuda_peak_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        self.show(pl_module, values)
        self._tokens, self._since = 0, now


def multiplied(model: nn.Module) -> int:
    """Parameters that are multiplied with every token: all but a table that is only looked up in."""
    parameters = sum(p.numel() for p in model.parameters())
    own: Any = model
    embedding = own.get_input_embeddings() if hasattr(own, "get_input_embeddings") else None
    head = own.get_output_embeddings() if hasattr(own, "get_output_embeddings") else None
    tied = embedding is not None and head is not None and embedding.weight is head.weight
    return parameters if embedding is None or tied else parameters - embedding.weight.numel()


def process_peak() -> int:
    """Most bytes this process has held in memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
