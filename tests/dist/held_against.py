"""What two runs are compared by: to the last bit, or as near as another order of sums leaves them.

In fp32 two orders of a sum differ by 1e-7. As long as that is all, two runs stay together; but sooner or later a
code falls to the other side of a rounding edge, and training amplifies what comes of it. So runs under FSDP2 are
held closely to their reference for as long as weights are the same, and loosely from then on.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.storage import flat

STEPS, EVERY = 30, 10
"""Optimizer steps of a run, and between two checkpoints."""
MEASURED = ("tokens_per_second", "speed/", "memory/")
DECIDED = ("step", "tokens", "learning_rate/", "teacher/")
"""What is logged of step, data and teacher, which no student has a say in."""


def metrics_of(folder: Path) -> list[dict[str, str]]:
    """What was logged, a row a step, without what a clock or the machine's memory has a say in."""
    path = folder / "logs" / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a report: teacher, before, after; the scores of a task under `tasks.NAME.KEY`."""
    return [flat(row) for row in json.loads((folder / "report.json").read_text())["rows"]]


def assert_same_run(folder: Path, reference: Path) -> None:
    """To the last bit: every logged number, student, optimizer and packed file; and the same report."""
    assert metrics_of(folder) == metrics_of(reference)
    found, expected = checkpoint_of(folder), checkpoint_of(reference)
    assert found["global_step"] == expected["global_step"] == STEPS and found["razor"] == expected["razor"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    (mine,), (wanted,) = found["optimizer_states"], expected["optimizer_states"]
    assert mine["state"].keys() == wanted["state"].keys()
    for name, state in wanted["state"].items():
        for key, value in state.items():
            assert torch.equal(mine["state"][name][key], value), (name, key)
    packed = Path("packed") / "model.safetensors"
    assert (folder / packed).read_bytes() == (reference / packed).read_bytes()
    assert_same_rows(folder, reference)


def assert_same_rows(folder: Path, reference: Path, within: float = 1e-12) -> None:
    """The same report; scores are sums in fp64, whose order depends on the number of processes."""
    for row, wanted in zip(rows_of(folder), rows_of(reference), strict=True):
        assert row.keys() == wanted.keys()
        for key, value in wanted.items():
            close = pytest.approx(value, rel=within, abs=within) if isinstance(value, float) else value
            assert row[key] == close, (row["name"], key)


def assert_near(folder: Path, reference: Path, first: int, within: float) -> None:
    """Losses and gradient norms of the first steps to `within`, the loss of all steps and the scores to 5 %."""
    rows, expected = metrics_of(folder), metrics_of(reference)
    assert [row.keys() for row in rows] == [row.keys() for row in expected] and len(rows) == STEPS
    for number, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
        for key, value in wanted.items():
            if key.startswith(DECIDED):
                assert float(row[key]) == pytest.approx(float(value), rel=1e-6), (number, key)
            elif number < first and key.startswith(("loss/", "gradient_norm")):
                assert float(row[key]) == pytest.approx(float(value), rel=within), (number, key)
            elif key in ("loss/total", "loss/task"):
                assert float(row[key]) == pytest.approx(float(value), rel=0.05), (number, key)
    assert_same_rows(folder, reference, 0.05)
