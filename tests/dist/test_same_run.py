"""A run does not depend on how many processes share it, nor on who started them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.export.packed import load_packed
from razor.models import make_student
from tests.dist.conftest import TORCHRUN, Place
from tests.dist.held_against import STEPS, assert_near, assert_same_run, checkpoint_of, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def test_ddp_is_the_run_of_one_process(one: Path, ddp: Path) -> None:
    """To the last bit: a sum of two gradients has one order, and halving is exact."""
    assert [int(row["step"]) for row in metrics_of(one)] == list(range(STEPS))
    assert float(metrics_of(one)[-1]["loss/eakld"]) < 0.8 * float(metrics_of(one)[0]["loss/eakld"])
    assert_same_run(ddp, one)


def test_fsdp2_is_the_run_of_one_process(one: Path, fsdp2: Path) -> None:
    """Up to the order of sums: AdamW's first steps go by signs, so the weights are still the same in the third."""
    assert_near(fsdp2, one, first=3, within=1e-4)


def test_a_checkpoint_is_the_same_file_under_any_strategy(one: Path, ddp: Path, fsdp2: Path) -> None:
    """Whole tensors, optimizer states by name, and of the student alone: no teacher."""
    wanted = checkpoint_of(one)
    names = wanted["state_dict"].keys()
    assert all(name.startswith("student.") for name in names)
    assert set(wanted["optimizer_states"][0]["state"]) <= set(names)
    for folder in (ddp, fsdp2):
        found = checkpoint_of(folder)
        assert found["state_dict"].keys() == names and found["razor"] == wanted["razor"]
        assert type(found["state_dict"]["student.lm_head.weight"]) is torch.Tensor
        for name, weight in wanted["state_dict"].items():
            assert found["state_dict"][name].shape == weight.shape, name
        mine, own = (kept["optimizer_states"][0] for kept in (found, wanted))
        assert {
            name: {key: value.shape for key, value in state.items()} for name, state in mine["state"].items()
        } == {
            name: {key: value.shape for key, value in state.items()} for name, state in own["state"].items()
        }
        assert [sorted(group["params"]) for group in mine["param_groups"]] == [
            sorted(group["params"]) for group in own["param_groups"]
        ]


def test_the_packed_model_of_fsdp2_is_the_student(fsdp2: Path, tiny_student: Callable[..., Any]) -> None:
    """The parts were put together: the packed folder has the logits of the student in the checkpoint."""
    _, plan, _, teacher = tiny_student()
    student = make_student(teacher.float(), plan, torch.float32)
    tokens = torch.arange(3, 83).reshape(2, 40)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=tokens, use_cache=False).logits

    untrained = logits(student)
    state = checkpoint_of(fsdp2)["state_dict"]
    student.load_state_dict({name.removeprefix("student."): weight for name, weight in state.items()})
    packed, _ = load_packed(fsdp2 / "packed")
    assert torch.equal(logits(packed), logits(student))
    assert not torch.equal(logits(packed), untrained)


def test_torchrun(place: Place, ddp: Path) -> None:
    """Processes that torchrun started make the run of those that Razor started, though each got all words."""
    folder = place.whole("trainer=ddp", "trainer.accelerator=cpu", by=TORCHRUN)
    assert_same_run(folder, ddp)
    printed = place.commands[-1].printed
    assert printed.count("report   ") == 1 and "Starting 2 processes" not in printed  # one of them talks
