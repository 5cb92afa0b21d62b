"""The LightningModule: a frozen teacher, a quantized student, and the losses between them.

One micro-batch: the distiller runs teacher and student and gives the weighted loss; Lightning accumulates,
clips and steps. What is logged is a step's: the mean over all its micro-batches, in all processes.

The teacher is no submodule: it is never trained, moved or saved by accident, and a checkpoint holds the
student alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from razor import processes
from razor.distill import Objective, Samples
from razor.distiller import Distiller
from razor.errors import RazorError
from razor.optimizer import parameter_groups
from razor.quant import set_progress
from razor.train.optimizer_states import names_of, renamed
from razor.train.settings import TrainSettings
from razor.train.sharding import shard_modules
from razor.train.step_means import StepMeans

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
        plan: as plain data, kept in checkpoints.

    Attributes:
        tokens: tokens of text (or images) seen since the run began, in all processes.
        interrupted: whether somebody asked to stop before the end.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        settings: TrainSettings,
        steps: int,
        cached: str | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.settings, self.steps = student, settings, steps
        self.objective = objective
        self.distiller = Distiller(objective, student, teacher, cached)
        self.plan = dict(plan or {})
        self.tokens, self.interrupted = 0, False
        self._step = StepMeans()
        if settings.gradient_checkpointing:
            # the latter is its name in earlier releases of Transformers 5
            enable = getattr(student, "activation_checkpointing_enable", None)
            (enable or student.gradient_checkpointing_enable)({"use_reentrant": False})

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher."""
        return self.distiller.teacher

    def configure_model(self) -> None:
        """Shard student and teacher over the processes, where the strategy has a mesh of them."""
        if (mesh := self.device_mesh) is not None and not self._sharded:
            shard_modules(self, mesh, self.settings.shard_teacher)

    @property
    def _sharded(self) -> bool:
        return any(hasattr(parameter, "full_tensor") for parameter in self.parameters())

    def on_fit_start(self) -> None:
        """Put the teacher beside the student."""
        if self.teacher is not None:
            nn.Module.to(self.teacher, self.device)

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of a micro-batch, and everything worth logging by name."""
        set_progress(self.student, self.global_step / self.steps)  # for formats that change on the way
        self.objective.set_step(self.global_step, self.steps)
        if not self.settings.offload_activations:
            return self.distiller.loss(batch)
        with torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda"):
            return self.distiller.loss(batch)

    def training_step(self, batch: Samples, index: int) -> Tensor:
        """Lightning divides by the number of micro-batches; `share` makes up for unequal ones."""
        loss, parts = self.loss(batch)
        counts = {batch.unit: batch.tokens, "text": int((batch.documents >= 0).sum())}
        self._step.add(batch.share, counts, {"loss/total": float(loss.detach())} | parts)
        return loss * batch.share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log what the micro-batches of this step said, and the gradient's norm before clipping."""
        values = self._step.take()
        self.tokens += int(values.pop("text"))
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients:  # DeepSpeed has put them away already
            return
        norm: Any = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.log("gradient_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plan, where in the data the run stands, and the optimizer by names."""
        if self.device_mesh is None and "state" in (checkpoint.get("optimizer_states") or [{}])[0]:
            names = names_of(self, self.optimizers(use_pl_optimizer=False).param_groups)  # type: ignore[union-attr]
            checkpoint["optimizer_states"] = [
                renamed(state, names) for state in checkpoint["optimizer_states"]
            ]
        each = self.trainer.accumulate_grad_batches
        checkpoint["razor"] = {
            "plan": self.plan,
            "tokens": self.tokens,
            "micro_batches": self.global_step * each * processes.world(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there, also with another number of processes.

        Lightning counts the micro-batches of one process; these are counted anew from the steps.

        Raises:
            RazorError: the checkpoint is of another plan.
        """
        kept = checkpoint["razor"]
        if kept["plan"] != self.plan:
            raise RazorError("The checkpoint holds a student of another plan than this run's.")
        self.tokens = kept["tokens"]
        if self.device_mesh is None and "optimizer_states" in checkpoint:
            groups = parameter_groups(self, self.settings.learning_rate, self.settings.weight_decay)
            numbers = {name: number for number, name in names_of(self, groups).items()}
            checkpoint["optimizer_states"] = [
                renamed(state, numbers) for state in checkpoint["optimizer_states"]
            ]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # saved at the end of a step's last micro-batch, whose completion Lightning counts afterwards
            counts.update(ready=done, started=done, processed=done, completed=done - 1)

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
