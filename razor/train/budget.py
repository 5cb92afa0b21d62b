"""A budget in minutes becomes a number of steps, once, before the first one.

The learning-rate schedule, a resumed run and a rerun must not depend on how fast a machine happened to be.
So `trainer.max_minutes` is turned into steps by timing a few real steps, and the number is kept in the run
folder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from razor.data.corpus import Corpus
from razor.data.steps import StepBatches
from razor.distill import Objective
from razor.storage import atomic_write
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIED = 3
OVERHEAD = 1.1
"""Optimizer step, clipping and logging, which the trial leaves out."""


def steps_of_run(
    folder: Path,
    settings: TrainSettings,
    objective: Objective,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    corpus: Corpus,
    rows_per_batch: int,
    cached: str | None = None,
) -> int:
    """Optimizer steps of the run in `folder`: as saved there, else from the settings, and then saved.

    `cached` says which targets the rows of the corpus bring in place of a teacher (see `Distiller`).
    """
    path = folder / "budget.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    steps = settings.max_steps
    if settings.max_minutes is not None:
        trial = StepBatches(corpus.train, TRIED, rows_per_batch)
        module = DistillModule(student, teacher, objective, settings, TRIED, cached)
        seconds = seconds_per_batch(module, trial, settings.device) * settings.accumulate * OVERHEAD
        steps = max(1, int(60 * settings.max_minutes / seconds))
        print(f"{settings.max_minutes:g} minutes are {steps} steps of {seconds:.2f} s.", flush=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"steps": steps, "max_minutes": settings.max_minutes}))
    return steps


def seconds_per_batch(module: DistillModule, batches: StepBatches, device: torch.device) -> float:
    """Seconds of a forward and backward pass, the fastest of a few; leaves no trace in the student."""
    module.to(device)
    module.on_fit_start()
    best = float("inf")
    for index in range(len(batches)):
        start = time.perf_counter()
        loss, _ = module.loss(batches[index].to(device))
        loss.backward()
        float(loss.detach())
        best = min(best, time.perf_counter() - start)
    module.zero_grad(set_to_none=True)
    return best
