"""What a run asks for, held against the kind of its model: of text, of images, or of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from razor.distill import AdaptiveFeatures
from razor.errors import RazorError
from razor.export.exporter import check_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.train.job import Job


FEWEST = 4
"""Images in a micro-batch that a ranking by CKA wants: of two, any two layers are alike to 1; of three, nearly."""

EVALS = {"text": "quick, offline, table, table_base, none", "images": "classification, none", "media": "none"}
"""Options of conf/evals for a kind of model."""


def check_kind(job: Job, skeleton: PreTrainedModel) -> None:
    """Raise RazorError if scores, exports, start or settings of a run are not for models of its kind."""
    name, task, benchmark = job.model.name, job.model.task, job.benchmark
    if benchmark.tasks and benchmark.task != task:
        choices = EVALS[task]
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
    _check_padded(job, skeleton)
    if job.rows_per_batch == 1 and any(isinstance(module, _BatchNorm) for module in skeleton.modules()):
        raise RazorError(
            f"data.rows_per_batch=1, and model={name} normalizes by the batch: give at least 2 images."
        )
    _check_ranking(job)


def _check_ranking(job: Job) -> None:
    """Raise RazorError for layers ranked by the CKA of too few examples, which are whole images or recordings.

    Of tokens, those of a decoder, there are always enough.
    """
    for name, loss in job.objective.losses.items():
        by_cka = isinstance(loss, AdaptiveFeatures) and loss.ranking == "cka"
        if by_cka and (job.model.task == "images" or loss.tower) and job.rows_per_batch < FEWEST:
            raise RazorError(
                f"data.rows_per_batch={job.rows_per_batch}, and distill.losses.{name}.ranking=cka compares layers "
                f"by how they tell {FEWEST} or more rows apart: more rows, or ranking=variance."
            )


def _check_padded(job: Job, skeleton: PreTrainedModel) -> None:
    """Raise RazorError for padded convolutions in bfloat16 on a CPU.

    Of such a convolution, on a feature map so small that a part of its kernel sees nothing but padding, torch
    (2.13, oneDNN) leaves that part of the weight's gradient as it finds the memory: any number, now and then 1e35.
    """
    if job.settings.device.type != "cpu" or job.settings.dtype is not torch.bfloat16:
        return
    for name, module in skeleton.named_modules():
        if isinstance(module, _ConvNd) and module.padding not in (0, "valid") and any(module.padding):
            raise RazorError(
                f"'{name}' is a padded convolution, whose gradient can be wrong in bfloat16 on a CPU: "
                "trainer.compute_dtype=float32."
            )
