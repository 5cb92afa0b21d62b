"""What a run will take, and how minutes become steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from razor.data.corpus import Corpus
from razor.data.document import Document
from razor.data.packing import pack
from razor.distill import ForwardKL, Objective
from razor.train import budget
from razor.train.budget import steps_of_run
from razor.train.estimate import estimate, matrix_speed
from razor.train.facts import environment
from razor.train.settings import TrainSettings

CPU = torch.device("cpu")


@pytest.fixture
def parts(tiny_student: Callable[..., Any]) -> dict[str, Any]:
    documents = [Document(np.arange(20, dtype=np.int32) + n, np.ones(20, dtype=bool)) for n in range(8)]
    rows = pack(documents, 40)
    student, _, _, teacher = tiny_student()
    objective = Objective({"kld": ForwardKL()}, {"kld": 1.0})
    corpus = Corpus(train=rows, held_out=rows)
    return {
        "objective": objective,
        "student": student,
        "teacher": teacher,
        "corpus": corpus,
        "rows_per_batch": 2,
    }


def test_steps_are_those_asked_for(parts: dict[str, Any], tmp_path: Path) -> None:
    assert steps_of_run(tmp_path, TrainSettings(max_steps=7), **parts) == 7
    assert steps_of_run(tmp_path, TrainSettings(max_steps=9), **parts) == 7  # of a run that has begun


def test_minutes_become_steps_by_trying(
    parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: value.clone() for name, value in parts["student"].state_dict().items()}
    settings = TrainSettings(accelerator="cpu", max_minutes=0.05)
    steps = steps_of_run(tmp_path, settings, **parts)
    assert steps >= 1 and f"are {steps} steps of" in capsys.readouterr().out
    assert json.loads((tmp_path / "budget.json").read_text()) == {"steps": steps, "max_minutes": 0.05}
    assert all(torch.equal(value, before[name]) for name, value in parts["student"].state_dict().items())
    assert all(parameter.grad is None for parameter in parts["student"].parameters())


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 54), (3, 18), (1000, 1)])
def test_a_step_of_more_micro_batches_takes_longer(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, steps: int
) -> None:
    monkeypatch.setattr(budget, "seconds_per_batch", lambda *_: 2.0)
    settings = TrainSettings(max_minutes=2, accumulate=accumulate)
    assert steps_of_run(tmp_path, settings, **parts) == steps  # two minutes by 2.2 s a micro-batch


def test_estimate_grows_with_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from razor import cli

    monkeypatch.setattr("razor.train.estimate.matrix_speed", lambda _: 1e11)
    small, large = (
        cli.model_source(cli.composed("size", [f"model={m}"])) for m in ("smollm2_135m", "qwen3_0p6b")
    )
    one = estimate(small, 1024, 10_000, small, CPU)
    assert estimate(small, 1024, 20_000, small, CPU).seconds == pytest.approx(2 * one.seconds)
    assert estimate(small, 1024, 10_000, None, CPU).memory < one.memory
    assert estimate(small, 4096, 10_000, small, CPU).memory > one.memory
    assert estimate(large, 1024, 10_000, large, CPU).memory > 3 * one.memory
    assert one.checkpoint == 12 * 134_515_008  # latents and two moments, fp32
    assert one.memory > 18 * 134_515_008


def test_matrix_speed_is_a_speed() -> None:
    assert 1e7 < matrix_speed(CPU, size=128) < 1e16


def test_facts_name_machine_and_versions() -> None:
    facts = environment(CPU)
    assert facts["hardware"]["device"] == "cpu" and facts["hardware"]["name"]
    assert {"python", "torch", "transformers", "lightning", "lm_eval"} <= set(facts["versions"])
    assert facts["git"] is None or len(facts["git"]["commit"]) == 40
    json.dumps(facts)
