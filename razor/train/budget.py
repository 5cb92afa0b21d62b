"""A budget in minutes becomes a number of steps, once, before the first one; so does the size of a step.

The learning-rate schedule, a resumed run and a rerun must not depend on how fast a machine happened to be, or on
how many processes shared the work. So `trainer.max_minutes` is turned into steps by timing a few real steps,
`trainer.accumulate=null` into the number of processes, and both numbers are kept in the run folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from razor.data.corpus import Corpus
from razor.data.steps import StepBatches
from razor.errors import RazorError
from razor.storage import atomic_write
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

TRIED = 3
OVERHEAD = 1.1
"""Optimizer step, clipping and logging, which the trial leaves out."""


@dataclass(frozen=True)
class Budget:
    """How long a run is.

    Attributes:
        steps: optimizer steps.
        micro_batches: of a step, in all processes together.
        max_minutes: what the steps were made of, if they were.
    """

    steps: int
    micro_batches: int
    max_minutes: float | None = None

    def each(self, processes: int) -> int:
        """Micro-batches of a step in one process.

        Raises:
            RazorError: they cannot be dealt out evenly.
        """
        each, left = divmod(self.micro_batches, processes)
        if left:
            raise RazorError(
                f"The {self.micro_batches} micro-batches of a step (trainer.accumulate) cannot be dealt evenly to "
                f"{processes} processes: a multiple of {processes} can, and null is one each."
            )
        return each

    def save(self, folder: Path) -> None:
        """Keep it in a run folder."""
        with atomic_write(folder / "budget.json") as temporary:
            temporary.write_text(json.dumps(asdict(self)))


def kept(folder: Path) -> Budget | None:
    """The budget of the run in `folder`; None if it has none yet.

    Raises:
        RazorError: it cannot be read.
    """
    path = folder / "budget.json"
    if not path.is_file():
        return None
    try:
        return Budget(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise RazorError(
            f"'{path}' is damaged ({type(error).__name__}); remove it to start the run over."
        ) from error


def planned(settings: TrainSettings) -> Budget:
    """What the settings say, minutes not yet counted in steps."""
    return Budget(settings.max_steps, settings.micro_batches, settings.max_minutes)


def counted(
    budget: Budget,
    trial: Callable[[int], DistillModule],
    corpus: Corpus,
    rows_per_batch: int,
    device: torch.device,
) -> Budget:
    """The budget with its minutes turned into steps, by trying a few.

    Args:
        budget: as planned.
        trial: makes the module to try, given a number of steps.
        corpus: what it is tried on.
        rows_per_batch: rows in a micro-batch.
        device: where it is tried.
    """
    if budget.max_minutes is None:
        return budget
    module = trial(TRIED)
    each = budget.each(module.settings.processes)
    tried = seconds_per_batch(module, StepBatches(corpus.train, TRIED, rows_per_batch), device)
    seconds = tried * each * OVERHEAD
    steps = max(1, int(60 * budget.max_minutes / seconds))
    print(f"{budget.max_minutes:g} minutes are {steps} steps of {seconds:.2f} s.", flush=True)
    return Budget(steps, budget.micro_batches, budget.max_minutes)


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
