"""Random numbers go on where they stopped, in Python, numpy and torch."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from razor.train.random_states import RandomStates


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]


def test_given_back_through_a_checkpoint_file(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves half a pair in the state
    torch.save(RandomStates(0).state_dict(), tmp_path / "states")
    expected = [drawn(), drawn()]
    resumed = RandomStates(0)
    resumed.load_state_dict(torch.load(tmp_path / "states", weights_only=True))
    drawn()  # scoring, say
    resumed.on_train_start(SimpleNamespace(global_step=3), None)  # type: ignore[arg-type]
    assert [drawn(), drawn()] == expected


def test_processes_part_when_training_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, Any] = {}
    for rank in (0, 1, 2):
        monkeypatch.setattr("razor.processes.rank", lambda rank=rank: rank)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        RandomStates(7).on_train_start(SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
        found[rank] = drawn()
    assert all(a != b for a, b in zip(found[0], found[1], strict=True))
    assert all(a != b for a, b in zip(found[1], found[2], strict=True))
