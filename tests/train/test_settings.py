"""Training's numbers: the schedule's values, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from razor.errors import RazorError
from razor.train.settings import TrainSettings


def factors(steps: int, **values: Any) -> list[float]:
    settings = TrainSettings(**values)
    return [settings.learning_rate_factor(step, steps) for step in range(steps)]


def test_warm_up_rises_to_one_in_even_steps() -> None:
    found = factors(100, warmup=0.05)
    assert found[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert max(found) == 1 and found.index(1) == 5


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("cosine", 0.5, 0.5 * (1 + math.cos(math.pi * 0.99))), ("linear", 0.5, 0.01), ("constant", 1.0, 1.0)],
)
def test_schedules(schedule: str, middle: float, last: float) -> None:
    found = factors(100, warmup=0.0, schedule=schedule)
    assert (found[0], found[50], found[99]) == pytest.approx((1.0, middle, last))
    assert all(a >= b >= 0 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_short_runs_learn_at_every_step(steps: int, warmup: float, schedule: str) -> None:
    assert all(0 < factor <= 1 for factor in factors(steps, warmup=warmup, schedule=schedule))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accelerator": "tpu"}, "accelerator='tpu'.*auto, cpu, gpu, mps"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16'.*bfloat16, float32"),
        ({"schedule": "step"}, "schedule='step'.*cosine, linear, constant"),
        ({"max_steps": 0}, "max_steps='0'"),
        ({"max_steps": 1.5}, "max_steps='1.5'"),
        ({"accumulate": 0}, "accumulate='0'"),
        ({"checkpoint_every": 0}, "checkpoint_every='0'"),
        ({"devices": 0, "strategy": "ddp"}, "devices='0'"),
        ({"nodes": True, "strategy": "ddp"}, "nodes='True'"),
        ({"loader_workers": -1}, "loader_workers='-1'"),
        ({"strategy": "fsdp"}, "strategy='fsdp'.*single, ddp, fsdp2, deepspeed_zero2"),
        ({"devices": 2}, "devices=2.*strategy=ddp or fsdp2"),
        ({"strategy": "ddp", "shard_teacher": True}, "shard_teacher=true.*fsdp2, not ddp"),
        ({"strategy": "deepspeed_zero2"}, "pip install deepspeed.*trainer=fsdp2"),
        ({"max_minutes": 0}, "max_minutes='0'"),
        ({"max_minutes": float("nan")}, "max_minutes='nan'"),
        ({"max_minutes": "long"}, "max_minutes='long'"),
        ({"warmup": -0.1}, "warmup='-0.1'.*0..1"),
        ({"warmup": 1.1}, "warmup='1.1'"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"clip": 0}, "clip"),
        ({"weight_decay": -1}, "weight_decay='-1'"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RazorError, match=message) as error:
        TrainSettings(**values)
    assert "\n" not in str(error.value)


def test_gpu_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RazorError, match=r"trainer=gpu.*trainer=cpu"):
        TrainSettings(accelerator="gpu")
    assert TrainSettings(accelerator="cpu").device.type == "cpu"
    assert TrainSettings(accelerator="auto").device.type in ("cpu", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert TrainSettings(accelerator="auto").device.type == "cuda"
    assert TrainSettings(accelerator="cpu").device.type == "cpu"


def test_torchrun_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(accelerator="cpu", strategy="ddp", devices=3, nodes=2, accumulate=None)
    assert (settings.here, settings.processes, settings.micro_batches) == (3, 6, 6)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (settings.here, settings.processes, settings.micro_batches) == (2, 4, 4)
    with pytest.raises(RazorError, match=r"torchrun started 4 processes.*trainer=ddp or trainer=fsdp2"):
        TrainSettings()
