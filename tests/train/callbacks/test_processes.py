"""Callbacks in a run of two processes: both do the same, one of them logs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "callbacks"),
    [("ddp", "default,early_stop,ema,freeze"), ("fsdp2", "default,held_out,freeze,bits")],
)
def test_two_processes(main_job: Any, rows_of: Callable[[Path], Any], strategy: str, callbacks: str) -> None:
    folder = main_job.folder()
    words = main_job.words(
        f"trainer={strategy}",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_steps=5",
        f"callbacks=[{callbacks}]",
        "callbacks.held_out.every=2",
        "callbacks.code_flips.every=2",
        "quant=w1p58",
    )
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, "train.py", *words, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        env=os.environ | {"RAZOR_CACHE": str(main_job.cache), "RAZOR_HEAP": "off"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(folder)
    assert [int(row["step"]) for row in rows] == list(range(5))
    assert ["held_out/kl" in row for row in rows] == ["codes/saturated" in row for row in rows]
    assert ["held_out/kl" in row for row in rows] == [False, True, False, True, True]
    assert all(row["speed/tokens_per_second"] > 0 for row in rows) and "codes/flipped" in rows[-1]
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5 and (folder / "packed" / "razor.json").is_file()


@pytest.mark.slow
def test_whole_weights_are_asked_for_first(main_job: Any) -> None:
    words = main_job.words("trainer=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks=[ema]")
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, "train.py", *words, f"hydra.run.dir={main_job.folder()}"],
        cwd=ROOT,
        env=os.environ | {"RAZOR_CACHE": str(main_job.cache), "RAZOR_HEAP": "off"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (
        done.returncode and "callbacks.ema averages whole weights, which this trainer splits" in done.stderr
    )
