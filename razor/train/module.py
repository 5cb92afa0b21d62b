"""The LightningModule: a frozen teacher, a quantized student, and the losses between them.

One micro-batch: the teacher runs without gradient; the objective settles what depends on the teacher alone
(EAKLD's gamma, AFD's layers); the student runs and records just what is needed; the weighted loss goes to
Lightning, which accumulates, clips and steps.

The teacher is no submodule: it is never trained, moved or saved by accident, and a checkpoint holds the
student alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from razor.distill import Batch, Objective
from razor.models import layers_of, record
from razor.train.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillModule(L.LightningModule):
    """Quantization-aware distillation of one student.

    Args:
        student: quantized, its parameters fp32 latents.
        teacher: the 16-bit model, or None if no loss needs it.
        objective: the losses.
        settings: optimizer and schedule.
        steps: optimizer steps of the whole run (the schedule's length).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        settings: TrainSettings,
        steps: int,
    ) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.settings, self.steps = settings, steps
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher."""
        return self._teacher[0] if self._teacher else None

    def on_fit_start(self) -> None:
        """Put the teacher beside the student."""
        if self.teacher is not None:
            nn.Module.to(self.teacher, self.device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of a micro-batch, and everything worth logging by name."""
        seen_by_teacher = None
        if self.teacher is not None:
            layers = self.objective.teacher_layers(len(layers_of(self.teacher)))
            with torch.no_grad():
                seen_by_teacher = record(self.teacher, batch, layers)
        seen = self.objective.observe(seen_by_teacher, batch)
        student = record(self.student, batch, seen.student_layers)
        loss, parts = self.objective(student, seen_by_teacher, batch, seen)
        facts = {f"{loss}/{key}": value for loss, own in seen.facts.items() for key, value in own.items()}
        chosen = {
            f"{name}/layer_{rank}": float(layer)
            for name, layers in seen.layers.items()
            for rank, layer in enumerate(layers)
        }
        return loss, {f"loss/{name}": value for name, value in parts.items()} | facts | chosen

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Lightning divides by the number of micro-batches; `share` makes up for unequal ones."""
        loss, parts = self.loss(batch)
        values = {"loss/total": float(loss.detach()), "tokens": float(batch.tokens)} | parts
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return loss * batch.share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before clipping."""
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.log("gradient_norm", norm, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW (weight decay on matrices only) under the settings' schedule."""
        optimizer = torch.optim.AdamW(
            parameter_groups(self.student.named_parameters(), self.settings.weight_decay),
            lr=self.settings.learning_rate,
            betas=(self.settings.betas[0], self.settings.betas[1]),
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.settings.learning_rate_factor(step, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices with weight decay; vectors (norms, biases) without."""
    trained = [p for _, p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
