"""What Razor's loop costs around the step itself: Lightning, callbacks and logs, beside a bare PyTorch loop.

Both sides make the same step: teacher, quantized student, 0.1 task + 2 EAKLD + 0.1 AFD, backward, clipping, AdamW,
schedule. `bare` is a `for` loop of ten lines; `razor` is what train.py runs, with its default callbacks, a bar and
metrics.csv. They take turns in one process, `steps` steps a turn, each from the same weights; a step lasts from one
batch to the next, and the first and last of a turn, which open and close a run, do not count.

    python benchmarks/loop.py [model=tiny_qwen3] [rows=2] [length=256] [steps=8] [rounds=5] [callbacks=default]

prints one JSON line: median seconds of a step, steps per second, and the overhead: the median over rounds of
razor / bare - 1. Run it under the heap settings of train.py (`make bench` does).
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch

from razor import cli
from razor.data.document import Document
from razor.data.packing import pack
from razor.data.steps import StepBatches
from razor.models import make_student
from razor.optimizer import parameter_groups
from razor.train.fitting import fit
from razor.train.module import DistillModule
from razor.train.run import quieten

OPTIONS = {"model": "tiny_qwen3", "rows": 2, "length": 256, "steps": 8, "rounds": 5, "callbacks": "default"}


class Clock(L.Callback):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: D102
        self.times.append(time.perf_counter())


def lasted(times: list[float]) -> list[float]:
    """Seconds of the steps, without the first and the last."""
    return [after - before for before, after in itertools.pairwise(times[1:])]


def bare(module: DistillModule, batches: StepBatches) -> list[float]:
    """The loop that a person would write."""
    settings, times = module.settings, []
    optimizer = torch.optim.AdamW(
        parameter_groups(module, settings.learning_rate, settings.weight_decay),
        betas=(settings.betas[0], settings.betas[1]),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: settings.learning_rate_factor(step, batches.max_steps)
    )
    module.train()
    for index in range(len(batches)):
        times.append(time.perf_counter())
        loss, _ = module.distiller.loss(batches[index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return lasted(times)


def razor(module: DistillModule, batches: StepBatches, config: Any) -> list[float]:
    """What train.py runs."""
    clock = Clock()
    callbacks = cli.build(config.callbacks)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loggers = [make(folder=folder, name="loop") for make in cli.build(config.logger).values()]
        job = SimpleNamespace(
            settings=module.settings, folder=folder, callbacks={**callbacks, "clock": clock}, seed=0
        )
        fit(job, module, batches, L.Callback(), loggers, None)  # type: ignore[arg-type]
    return lasted(clock.times)


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    options = {key: type(value)(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    quieten()
    logging.disable(logging.WARNING)
    config = cli.composed(
        "train",
        [
            f"model={options['model']}",
            "model.weights=random",
            f"callbacks={options['callbacks']}",
            "logger=csv",
            "trainer.checkpoint_every=1000000",
            f"trainer.max_steps={options['steps']}",
        ],
    )
    source, settings = cli.model_source(config), cli.build(config.trainer)
    teacher, chance = source.load(torch.bfloat16), np.random.default_rng(0)
    student = make_student(teacher, cli.build(config.quant).plan(source.skeleton()), torch.bfloat16)
    length, vocabulary = options["length"], source.config().vocab_size
    documents = [
        Document(chance.integers(0, vocabulary, length).astype(np.int32), np.arange(length) >= length // 4)
        for _ in range(4 * options["rows"])
    ]
    batches = StepBatches(pack(documents, length), options["steps"], options["rows"])
    start, seconds = copy.deepcopy(student.state_dict()), {"bare": [], "razor": []}
    for _ in range(options["rounds"]):
        for side, times in seconds.items():
            student.load_state_dict(start)
            module = DistillModule(student, teacher, cli.build(config.distill), settings, options["steps"])
            times.append(
                statistics.median(bare(module, batches) if side == "bare" else razor(module, batches, config))
            )
            module.zero_grad(set_to_none=True)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    overhead = [r / b - 1 for r, b in zip(seconds["razor"], seconds["bare"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "loop",
                **options,
                "seconds": {side: round(value, 4) for side, value in medians.items()},
                "steps_per_second": {side: round(1 / value, 2) for side, value in medians.items()},
                "overhead": round(statistics.median(overhead), 4),
                "all": {side: [round(t, 4) for t in times] for side, times in seconds.items()},
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
