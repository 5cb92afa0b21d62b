"""Runs of two processes that were killed or stopped, and went on with as many, more or less."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.dist.conftest import TWO, Command, Place
from tests.dist.held_against import EVERY, STEPS, assert_near, assert_same_run, checkpoint_of, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.dist]
LEAD = EVERY + 2
"""Steps in which a run is still close to one of another strategy: those before the change, and two after it.

An optimizer that was lost changes the second by 20 % of the gradient's norm.
"""


def begun(place: Place, *words: str) -> Command:
    """A run between its first checkpoint and its second."""
    command = place.begin(*words)
    command.trained()
    return command


def assert_cut_short(folder: Path) -> None:
    """Killed after its first checkpoint, and long before its end."""
    assert EVERY <= checkpoint_of(folder)["global_step"] < STEPS
    assert EVERY < len(metrics_of(folder)) < STEPS and not (folder / "report.json").exists()


def go_on(place: Place, folder: Path, *words: str) -> Path:
    """Continue a run to its end, with processes; what was scored is not scored again."""
    command = place.go_on(folder, *words)
    assert command.ended() == 0, command.printed[-4000:]
    assert "Continuing from" in command.printed and "before: held-out" not in command.printed
    return folder


def test_ddp_one_process_dies(place: Place, ddp: Path, one: Path) -> None:
    """The others end, the command says so by its exit code; the run goes on with two processes, or with one."""
    command = begun(place, "trainer=ddp", *TWO)
    command.workers()[-1].kill()
    assert command.ended() not in (0, 2, 130)
    assert_cut_short(command.folder)
    copy = place.copied(command.folder)
    assert_same_run(go_on(place, command.folder), ddp)
    assert_same_run(place.go_on_alone(copy), one)


def test_one_process_killed_then_two(place: Place, one: Path) -> None:
    """Where a run goes on is said anew: two copies to the last bit, two parts as near as parts are."""
    command = begun(place)
    command.kill()
    assert_cut_short(command.folder)
    copy = place.copied(command.folder)
    assert_same_run(go_on(place, command.folder, "trainer.strategy=ddp", *TWO), one)
    go_on(place, copy, "trainer.strategy=fsdp2", "trainer.shard_teacher=true", *TWO)
    assert_near(copy, one, LEAD, 1e-3)


def test_fsdp2_all_killed(place: Place, fsdp2: Path) -> None:
    """Two parts again, to the last bit; or one process, which got the optimizer's parts put together."""
    command = begun(place, "trainer=fsdp2", *TWO)
    command.kill()
    assert_cut_short(command.folder)
    copy = place.copied(command.folder)
    assert_same_run(go_on(place, command.folder), fsdp2)
    assert_near(place.go_on_alone(copy), fsdp2, LEAD, 1e-3)


def test_ctrl_c(place: Place, one: Path) -> None:
    """Given to the command, as a terminal does: the step in hand is finished, in all processes, and saved."""
    command = begun(place, "trainer=ddp", *TWO)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.ended() == 130, command.printed[-4000:]
    assert "Stopping after this step" in command.printed and "ckpt=last" in command.printed
    assert "Traceback" not in command.printed and not (command.folder / "report.json").exists()
    assert EVERY < checkpoint_of(command.folder)["global_step"] == len(metrics_of(command.folder)) < STEPS
    assert_same_run(place.go_on_alone(command.folder), one)


def test_the_command_is_killed(place: Place) -> None:
    """By SIGKILL, so that it cannot end its processes: they see it, save and stop, as on Ctrl-C."""
    command = begun(place, "trainer=fsdp2", *TWO, "trainer.max_steps=300")
    command.process.kill()
    assert command.ended() == -signal.SIGKILL
    assert EVERY < checkpoint_of(command.folder)["global_step"] < 300
    assert "Stopped after step" in command.printed and not (command.folder / "report.json").exists()
