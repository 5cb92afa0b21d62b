"""A run that was killed or stopped, and continued, ends as one that never was: to the last digit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LONG = ("trainer.max_steps=40", "trainer.checkpoint_every=5")
SHORT = ("trainer.max_steps=8", "trainer.checkpoint_every=3")


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    measured = ("tokens_per_second", "speed/", "memory/")
    return [{key: value for key, value in row.items() if not key.startswith(measured)} for row in rows]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_end(folder: Path, reference: Path) -> None:
    """Same logs, same weights, same report as the uninterrupted run."""
    assert metrics_of(folder) == metrics_of(reference)
    found, expected = checkpoint_of(folder), checkpoint_of(reference)
    assert found["global_step"] == expected["global_step"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    packed = Path("packed") / "model.safetensors"
    assert (folder / packed).read_bytes() == (reference / packed).read_bytes()
    rows, expected_rows = (json.loads((f / "report.json").read_text())["rows"] for f in (folder, reference))
    assert rows == expected_rows


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 900) -> None:
    """Poll until `condition`; fail if the process ends or time runs out before."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)


def killed_in_training(main_job: Any, *words: str) -> Path:
    """A run folder whose process died by SIGKILL after a checkpoint, long before the last step."""
    folder = main_job.folder()
    process = main_job.start(*main_job.words(*LONG, *words), f"hydra.run.dir={folder}")
    wait_until(process, (folder / "checkpoints" / "last.ckpt").is_file)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < checkpoint_of(folder)["global_step"] < 40 and not (folder / "report.json").exists()
    return folder


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(main_job: Any) -> None:
    folder = killed_in_training(main_job)
    process = main_job.start(f"run={folder}", "ckpt=last")
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    assert "Continuing from" in out and "scoring" not in err
    reference = main_job(*LONG)
    assert reference.code == 0, reference.err
    assert_same_end(folder, reference.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["trainer.accumulate=2"], ["model=tiny_qwen3", "distill=kld", "trainer.accumulate=3"]]
)
def test_killed_and_resumed_with_accumulation(main_job: Any, words: list[str]) -> None:
    folder = killed_in_training(main_job, *words)
    resumed, reference = main_job.resume(folder), main_job(*LONG, *words)
    assert (resumed.code, reference.code) == (0, 0), resumed.err + reference.err
    assert_same_end(folder, reference.folder)


@pytest.fixture(scope="module")
def reference(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory, make_main_job: Any) -> Path:
    """The folder of a short run that nothing interrupted."""
    done = make_main_job(tmp_path_factory.mktemp("reference"))(*SHORT)
    assert done.code == 0, done.err
    return done.folder


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would, where a test wants it; nothing catches it."""


def killed_at(main_job: Any, place: str, *words: str) -> Path:
    """A run folder whose process died when it came to `place`."""

    def die(*args: Any, **options: Any) -> None:
        raise Killed

    folder = main_job.folder()
    with main_job.monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(Killed):
            main_job(*SHORT, *words, folder=folder)
    return folder


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_at_a_step_between_checkpoints(main_job: Any, accumulate: int) -> None:
    words = (*SHORT, f"trainer.accumulate={accumulate}")
    folder = main_job.folder()
    dies_at_step(main_job, 5)
    with pytest.raises(Killed):
        main_job(*words, folder=folder)
    main_job.monkeypatch.undo()
    assert checkpoint_of(folder)["global_step"] == 3
    resumed, reference = main_job.resume(folder), main_job(*words)
    assert (resumed.code, reference.code) == (0, 0), resumed.err + reference.err
    assert_same_end(folder, reference.folder)


def dies_at_step(main_job: Any, step: int, how: Callable[[], None] | None = None) -> None:
    """From now on a training step numbered `step` (from 0) dies, or does `how` and goes on."""
    from razor.train.module import DistillModule

    honest = DistillModule.training_step

    def training_step(self: Any, batch: Any, index: int) -> Any:
        if self.trainer.global_step == step:
            if how is None:
                raise Killed
            how()
        return honest(self, batch, index)

    main_job.monkeypatch.setattr(DistillModule, "training_step", training_step)


@pytest.mark.slow  # the kills of tests/faults are the same in processes of their own
@pytest.mark.parametrize(
    "place",
    [
        "razor.data.teacher_made.save_shard",
        "razor.train.budget.atomic_write",
        "razor.train.evaluation.score_held_out",
        "razor.train.module.DistillModule.training_step",
        "razor.train.finish.save_packed",
        "razor.export.packed.load_packed",
        "razor.train.finish.draw_losses",
        "razor.evals.report.Report.save",
    ],
)
def test_killed_anywhere_and_resumed(main_job: Any, place: str, tmp_path: Path, reference: Path) -> None:
    """Before the first checkpoint a resumed run starts over; after the last step it just finishes."""
    if place.endswith("save_shard"):
        main_job.cache = tmp_path / "empty"
    folder = killed_at(main_job, place)
    before = metrics_of(folder) if (folder / "logs" / "metrics.csv").is_file() else None
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, reference)
    if "finish" in place or "report" in place:
        assert metrics_of(folder) == before  # nothing was trained again, nothing forgotten
        assert (folder / "losses.png").is_file()


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_by_a_real_signal(main_job: Any, reference: Path) -> None:
    folder = main_job.folder()
    process = main_job.start(*main_job.words(*SHORT), f"hydra.run.dir={folder}")
    wait_until(process, (folder / "config.yaml").is_file)
    process.kill()
    process.communicate()
    assert not (folder / "checkpoints").exists()
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_saves_and_says_how_to_go_on(
    main_job: Any, number: int, reference: Path
) -> None:
    folder = main_job.folder()
    handler = signal.getsignal(number)
    dies_at_step(main_job, 4, lambda: os.kill(os.getpid(), number))
    stopped = main_job(*SHORT, folder=folder)
    main_job.monkeypatch.undo()
    assert stopped.code == 130, stopped.err
    assert checkpoint_of(folder)["global_step"] == 5  # the step in hand was finished
    assert f"python train.py run={os.path.relpath(folder)} ckpt=last" in stopped.out
    assert "Traceback" not in stopped.err
    assert signal.getsignal(number) is handler
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, reference)


def test_ctrl_c_of_a_real_process(main_job: Any) -> None:
    folder = main_job.folder()
    process = main_job.start(*main_job.words(*LONG), f"hydra.run.dir={folder}")
    wait_until(process, (folder / "checkpoints" / "last.ckpt").is_file)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Stopping after this step" in out and "ckpt=last" in out and "Traceback" not in err
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err


def test_a_second_ctrl_c_stops_at_once(main_job: Any) -> None:
    folder = main_job.folder()
    handler = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    dies_at_step(main_job, 4, twice)
    stopped = main_job(*SHORT, folder=folder)
    main_job.monkeypatch.undo()
    assert stopped.code == 130 and "Traceback" not in stopped.err
    assert "ckpt=last" in stopped.out + stopped.err
    assert checkpoint_of(folder)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) is handler
    assert main_job.resume(folder).code == 0


@pytest.mark.parametrize("call", [1, 3])  # the teacher's scores; the trained student's
def test_ctrl_c_while_scoring_says_how_to_go_on(main_job: Any, call: int, reference: Path) -> None:
    from razor.evals import held_out

    folder, calls = main_job.folder(), []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return held_out.score_held_out(*args)

    main_job.monkeypatch.setattr("razor.train.evaluation.score_held_out", interrupted)
    stopped = main_job(*SHORT, folder=folder)
    main_job.monkeypatch.undo()
    assert stopped.code == 130, stopped.out + stopped.err
    assert "ckpt=last" in stopped.out + stopped.err and not (folder / "report.json").exists()
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, reference)


def test_ctrl_c_ends_a_sweep(main_job: Any) -> None:
    dies_at_step(main_job, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
    here = "hydra.callbacks.sweep.own_process=false"
    words = main_job.words("quant=w4,w1p58", f"hydra.sweep.dir={main_job.home}", here)
    stopped = main_job.command("-m", *words, folder=main_job.home)
    assert stopped.code == 130
    assert [path.name for path in main_job.home.iterdir() if path.is_dir()] == ["0_tiny_llama_w4"]


def test_minutes_become_steps_once(main_job: Any) -> None:
    """The number found at the start stays, however fast the machine is when the run is resumed."""
    folder = main_job.folder()
    patch = main_job.monkeypatch
    patch.setattr("razor.train.budget.seconds_per_batch", lambda *_: 0.5)
    dies_at_step(main_job, 2)
    words = ("trainer.max_minutes=0.05", "trainer.checkpoint_every=2")
    with pytest.raises(Killed):
        main_job(*words, folder=folder)
    budget = json.loads((folder / "budget.json").read_text())
    assert budget == {
        "steps": 5,
        "micro_batches": 1,
        "max_minutes": 0.05,
    }  # 3 s at 0.5 s and a tenth more a step
    patch.undo()
    patch.setattr("razor.train.budget.seconds_per_batch", lambda *_: 0.001)
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    assert json.loads((folder / "report.json").read_text())["steps"] == 5
    assert json.loads((folder / "budget.json").read_text()) == budget


def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(main_job: Any) -> None:
    done = main_job("trainer.max_steps=3", "trainer.checkpoint_every=1")
    report = json.loads((done.folder / "report.json").read_text())["rows"]
    last, previous = (done.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    shutil.rmtree(done.folder / "packed")
    (done.folder / "scores" / "after.json").unlink()
    last.write_bytes(last.read_bytes()[:-1000])
    resumed = main_job.resume(done.folder)
    assert resumed.code == 0, resumed.err
    assert f"'{last}' is damaged" in resumed.out and f"Continuing from '{previous}'" in resumed.out
    again = json.loads((done.folder / "report.json").read_text())["rows"]
    assert again[-1] == report[-1]


def test_without_a_whole_checkpoint_a_run_is_refused(main_job: Any) -> None:
    done = main_job("trainer.max_steps=2", "trainer.checkpoint_every=1")
    last, previous = (done.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:-1000])
    problem = main_job.resume(done.folder).problem
    assert str(last) in problem and str(previous) in problem and "remove it" in problem
    last.unlink()
    previous.unlink()
    shutil.rmtree(done.folder / "packed")
    assert main_job.resume(done.folder).code == 0
