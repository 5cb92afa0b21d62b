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
from razor.errors import RazorError
from razor.train import budget
from razor.train.budget import Budget
from razor.train.facts import environment
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

CPU = torch.device("cpu")


@pytest.fixture
def module(tiny_student: Callable[..., Any]) -> Callable[[TrainSettings], Callable[[int], DistillModule]]:
    student, _, _, teacher = tiny_student()
    objective = Objective({"kld": ForwardKL()}, {"kld": 1.0})
    return lambda settings: lambda steps: DistillModule(student, teacher, objective, settings, steps)


@pytest.fixture
def corpus() -> Corpus:
    documents = [Document(np.arange(20, dtype=np.int32) + n, np.ones(20, dtype=bool)) for n in range(8)]
    rows = pack(documents, 40)
    return Corpus(train=rows, held_out=rows)


def counted(settings: TrainSettings, module: Any, corpus: Corpus) -> Budget:
    return budget.counted(budget.planned(settings), module(settings), corpus, 2, CPU)


def test_steps_are_those_asked_for(module: Any, corpus: Corpus) -> None:
    assert counted(TrainSettings(max_steps=7, accumulate=3), module, corpus) == Budget(7, 3)


def test_it_is_kept(tmp_path: Path) -> None:
    assert budget.kept(tmp_path) is None
    Budget(5, 2, 0.5).save(tmp_path)
    assert budget.kept(tmp_path) == Budget(5, 2, 0.5)
    (tmp_path / "budget.json").write_text('{"steps": 5')
    with pytest.raises(RazorError, match=r"budget.json' is damaged"):
        budget.kept(tmp_path)


def test_minutes_become_steps_by_trying(
    module: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(accelerator="cpu", max_minutes=0.05)
    student = module(settings)(1).student
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = counted(settings, module, corpus)
    assert found.steps >= 1 and f"are {found.steps} steps of" in capsys.readouterr().out
    assert found.max_minutes == 0.05 and found.micro_batches == 1
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 54), (3, 18), (1000, 1)])
def test_a_step_of_more_micro_batches_takes_longer(
    module: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, accumulate: int, steps: int
) -> None:
    monkeypatch.setattr(budget, "seconds_per_batch", lambda *_: 2.0)
    settings = TrainSettings(max_minutes=2, accumulate=accumulate)
    assert counted(settings, module, corpus).steps == steps  # two minutes by 2.2 s a micro-batch


def test_micro_batches_are_dealt_evenly() -> None:
    assert [Budget(1, 6).each(processes) for processes in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(RazorError, match=r"6 micro-batches .*trainer.accumulate.* 4 processes.*null"):
        Budget(1, 6).each(4)


def test_facts_name_machine_and_versions() -> None:
    facts = environment(CPU)
    assert facts["hardware"]["device"] == "cpu" and facts["hardware"]["name"]
    assert {"python", "torch", "transformers", "lightning", "lm_eval"} <= set(facts["versions"])
    assert facts["git"] is None or len(facts["git"]["commit"]) == 40
    json.dumps(facts)
