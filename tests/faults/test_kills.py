"""Twenty runs are killed, each at another moment, and resumed: all end as the run that nobody killed.

To the last bit, of losses, weights, optimizer and packed file; among them runs with accumulation and with loader
workers. RAZOR_FAULTS=NUMBER draws other moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import (
    Moment,
    Runs,
    assert_nothing_half_written,
    assert_same_end,
    half_written,
    moments,
)

pytestmark = [pytest.mark.slow, pytest.mark.faults]
SEED = int(os.environ.get("RAZOR_FAULTS", "0"))
KINDS = ((), ("trainer.accumulate=2",), ("trainer.loader_workers=2",), ("callbacks=none", "distill=kld"))
"""Words of the runs that are killed, in turn."""


@pytest.mark.parametrize("number", range(20))
def test_killed_and_resumed(runs: Runs, references: Callable[..., Path], number: int, tmp_path: Path) -> None:
    moment, words = moments(SEED)[number], KINDS[number % len(KINDS)]
    reference = references(*words)
    if "save_shard" in moment.place or "storage" in moment.place or moment.place == "time":
        runs.main_job.cache = tmp_path / "cache"  # nothing is prepared yet
    folder = runs.folder()
    killed = runs.run(folder, *words, before=moment.arm)
    assert killed.code == -signal.SIGKILL, f"{moment} was never come to: {killed.err}"
    assert_nothing_half_written(folder)
    begun = (folder / "config.yaml").is_file()  # if not, the same command begins it
    again = runs.resume(folder) if begun else runs.run(folder, *words)
    assert again.code == 0, f"{moment}: {again.err}"
    assert_same_end(folder, reference)
    print(f"{moment} {' '.join(words)}: resumed")


def test_killed_again_and_again(runs: Runs, references: Callable[..., Path]) -> None:
    """One run that dies at every second step, and in the middle of every second checkpoint, still arrives."""
    reference, folder = references(), runs.folder()
    ended = runs.run(folder, before=Moment("razor.train.module.DistillModule.training_step", 4).arm)
    deaths = 0
    while ended.code == -signal.SIGKILL:
        deaths += 1
        assert deaths < 20
        if deaths % 2:
            ended = runs.resume(folder, before=lambda: setattr(torch, "save", half_written))
        else:
            ended = runs.resume(
                folder, before=Moment("razor.train.module.DistillModule.training_step", 4).arm
            )
    assert deaths >= 3 and ended.code == 0, ended.err
    assert_same_end(folder, reference)


def test_real_processes_killed_at_random_times(runs: Runs, references: Callable[..., Path]) -> None:
    """The same with processes started from nothing, as a person starts them, killed from outside, three times."""
    draw, reference, folder = random.Random(SEED), references(), runs.folder()
    words = runs.main_job.words(
        "trainer.max_steps=8", "trainer.checkpoint_every=3", "data.source.tokens=2000"
    )
    process = runs.main_job.start(*words, f"hydra.run.dir={folder}")
    kills = 0
    while kills < 3:
        try:
            process.wait(draw.uniform(3, 12))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            time.sleep(0.1)
            begun = (folder / "config.yaml").is_file()
            process = runs.main_job.start(
                *((f"run={folder}", "ckpt=last") if begun else (*words, f"hydra.run.dir={folder}"))
            )
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    assert_same_end(folder, reference)
