"""Small trainings with callbacks: a tiny student, a few steps, and what was logged."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from razor.data.document import Document
from razor.data.packing import pack
from razor.data.steps import StepBatches
from razor.distill import ForwardKL, Objective
from razor.train.loader import StepData
from razor.train.loggers import csv_logger
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

Fit = Callable[..., tuple[DistillModule, list[dict[str, float]]]]


def rows_of(folder: Path) -> list[dict[str, float]]:
    """metrics.csv, blanks left out."""
    with (folder / "logs" / "metrics.csv").open() as stream:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(stream)]


@pytest.fixture
def fit(tiny_student: Callable[..., Any], tmp_path: Path) -> Fit:
    """Train for a few steps with callbacks: the module, and the rows that were logged."""

    def run(
        callbacks: Sequence[L.Callback],
        steps: int = 6,
        quant: str = "mixed_2p79",
        accumulate: int = 1,
        **values: Any,
    ) -> tuple[DistillModule, list[dict[str, float]]]:
        chance = np.random.default_rng(0)
        sizes = chance.integers(8, 40, 12)
        made = [Document(chance.integers(0, 256, n).astype(np.int32), np.arange(n) >= n // 2) for n in sizes]
        batches = StepBatches(pack(made, 48, pad_id=256), steps, 2, accumulate)
        student, _, _, teacher = tiny_student(quant)
        settings = TrainSettings(accelerator="cpu", max_steps=steps, **values)
        module = DistillModule(
            student, teacher, Objective({"kld": ForwardKL()}, {"kld": 1.0}), settings, steps
        )
        L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            logger=csv_logger(tmp_path, "run"),
            callbacks=list(callbacks),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
            default_root_dir=tmp_path,
        ).fit(module, StepData(batches))
        return module, rows_of(tmp_path)

    return run


@pytest.fixture(name="rows_of")
def rows_of_fixture() -> Callable[[Path], list[dict[str, float]]]:
    """metrics.csv of a run."""
    return rows_of
