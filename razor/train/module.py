"""The LightningModule: a frozen teacher, a quantized student, and the losses between them.

One micro-batch: the distiller runs teacher and student and gives the weighted loss; Lightning accumulates,
clips and steps.

The teacher is no submodule: it is never trained, moved or saved by accident, and a checkpoint holds the
student alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from razor.distill import Batch, Objective
from razor.distiller import Distiller
from razor.optimizer import parameter_groups
from razor.quant import set_progress
from razor.train.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillModule(L.LightningModule):
    """Quantization-aware distillation of one student.

    Args:
        student: quantized, its parameters fp32 latents.
        teacher: the 16-bit model, or None if no loss needs it, or its targets are cached.
        objective: the losses.
        settings: optimizer and schedule.
        steps: optimizer steps of the whole run (the schedule's length).
        cached: "sampled" or "topk" if every batch brings the teacher's targets.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        settings: TrainSettings,
        steps: int,
        cached: str | None = None,
    ) -> None:
        super().__init__()
        self.student, self.settings, self.steps = student, settings, steps
        self.objective = objective
        self.distiller = Distiller(objective, student, teacher, cached)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher."""
        return self.distiller.teacher

    def on_fit_start(self) -> None:
        """Put the teacher beside the student."""
        if self.teacher is not None:
            nn.Module.to(self.teacher, self.device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of a micro-batch, and everything worth logging by name."""
        set_progress(self.student, self.global_step / self.steps)  # for formats that change on the way
        self.objective.set_step(self.global_step, self.steps)
        return self.distiller.loss(batch)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Lightning divides by the number of micro-batches; `share` makes up for unequal ones."""
        loss, parts = self.loss(batch)
        values = {"loss/total": float(loss.detach()), "tokens": float(batch.tokens)} | parts
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return loss * batch.share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before clipping."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.log("gradient_norm", norm, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW (weight decay on matrices only) of student and projections under the settings' schedule."""
        optimizer = torch.optim.AdamW(
            parameter_groups(self, self.settings.learning_rate, self.settings.weight_decay),
            betas=(self.settings.betas[0], self.settings.betas[1]),
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.settings.learning_rate_factor(step, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
