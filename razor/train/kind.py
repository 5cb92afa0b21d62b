"""What a run asks for, held against the kind of its model: of text or of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from razor.errors import RazorError
from razor.export.exporter import check_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.train.job import Job


def check_kind(job: Job, skeleton: PreTrainedModel) -> None:
    """Raise RazorError if scores, exports, start or settings of a run are not for models of its kind."""
    name, task, benchmark = job.model.name, job.model.task, job.benchmark
    if benchmark.tasks and benchmark.task != task:
        choices = "classification, none" if task == "images" else "quick, offline, table, none"
        raise RazorError(
            f"evals asks about {benchmark.task}, and model={name} reads {task}: evals={choices}."
        )
    for exporter in job.exporters.values():
        check_format(exporter, skeleton.config)
    if job.start is not None and task != "text":
        raise RazorError(f"start={job.start.name} reads text, and model={name} {task}: start=none.")
    if job.settings.gradient_checkpointing and not skeleton.supports_gradient_checkpointing:
        raise RazorError(
            f"trainer.gradient_checkpointing=true, which model={name} ({type(skeleton).__name__}) cannot."
        )
    if job.rows_per_batch == 1 and any(isinstance(module, _BatchNorm) for module in skeleton.modules()):
        raise RazorError(
            f"data.rows_per_batch=1, and model={name} normalizes by the batch: give at least 2 images."
        )
