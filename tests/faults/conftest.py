"""Runs in processes that are killed, for real, at a moment that a test chooses; and what they have to come to.

A run is forked off this process, which has imported everything and computed nothing, so that twenty kills and
twenty resumes take minutes. A moment is either a place in the code, the n-th time that it is come to, or a time.
"""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
import os
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

SHORT = ("trainer.max_steps=8", "trainer.checkpoint_every=3", "data.source.tokens=2000")
MEASURED = ("tokens_per_second", "speed/", "memory/")


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        place: dotted name of a function, or "time".
        times: how often it may be come to before; for "time" the seconds.
        after: killed as the function has done its work, not before.
    """

    place: str
    times: float
    after: bool = False

    def __str__(self) -> str:
        return f"{self.place.rpartition('razor.')[2]}:{self.times:g}{'+' if self.after else ''}"

    def arm(self) -> None:
        """From now on this process dies at the moment."""
        if self.place == "time":
            signal.signal(signal.SIGALRM, lambda *_: die())
            signal.setitimer(signal.ITIMER_REAL, self.times)
            return
        owner, name = self._owner()
        honest, left = getattr(owner, name), [self.times]

        def armed(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0 and not self.after:
                die()
            result = honest(*args, **options)
            if left[0] < 0:
                die()
            return result

        setattr(owner, name, armed)

    def _owner(self) -> tuple[Any, str]:
        parts = self.place.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                owner: Any = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1]
        raise LookupError(self.place)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(checkpoint: Any, path: Any, *_: Any, **__: Any) -> None:
    """In place of `torch.save`: part of a file, and death."""
    Path(path).write_bytes(b"PK\x03\x04" + bytes(5000))
    die()


@dataclass(frozen=True)
class Ended:
    """What a process left: exit code (minus the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str


class Runs:
    """Starts tiny runs in forked processes."""

    def __init__(self, main_job: Any) -> None:
        self.main_job = main_job

    def folder(self) -> Path:
        return self.main_job.folder()

    def run(self, folder: Path, *words: str, before: Callable[[], None] | None = None) -> Ended:
        """A new run."""
        return self._fork(lambda: self.main_job(*SHORT, *words, folder=folder), before)

    def resume(self, folder: Path, before: Callable[[], None] | None = None) -> Ended:
        """Go on with the run in a folder."""
        return self._fork(lambda: self.main_job.resume(folder), before)

    def _fork(self, work: Callable[[], Any], before: Callable[[], None] | None) -> Ended:
        context = multiprocessing.get_context("fork")
        reader, writer = context.Pipe(duplex=False)

        def child() -> None:
            if before is not None:
                before()
            outcome = work()
            writer.send((outcome.code, outcome.out, outcome.err))

        process = context.Process(target=child)
        process.start()
        writer.close()
        try:
            said = reader.recv()
        except EOFError:
            said = None
        process.join()
        return Ended(*said) if said else Ended(process.exitcode or 0, "", "")


def assert_nothing_half_written(folder: Path) -> None:
    """Every file under its final name is whole; what is not whole has a temporary name beside it."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if any(part.startswith(".") and part != ".hydra" for part in relative.parts):
            continue  # a temporary of atomic_write, orphaned by the kill
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_text())
        elif path.suffix == ".ckpt":
            assert zipfile.ZipFile(path).testzip() is None
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                assert all(tensors.get_tensor(name) is not None for name in tensors.keys())  # noqa: SIM118


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]


def assert_same_end(folder: Path, reference: Path) -> None:
    """The same losses, weights, optimizer, packed bytes and scores as the run that nobody killed."""
    assert metrics_of(folder) == metrics_of(reference)
    found, expected = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, reference)
    )
    assert found["global_step"] == expected["global_step"] and found["razor"] == expected["razor"]
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    for number, state in expected["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(found["optimizer_states"][0]["state"][number][key], value), (number, key)
    packed = Path("packed") / "model.safetensors"
    assert (folder / packed).read_bytes() == (reference / packed).read_bytes()
    rows, wanted = (json.loads((f / "report.json").read_text())["rows"] for f in (folder, reference))
    assert rows == wanted


@pytest.fixture
def runs(main_job: Any) -> Runs:
    return Runs(main_job)


@pytest.fixture(scope="session")
def references(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the run with some words, that nobody killed; made once."""
    made: dict[tuple[str, ...], Path] = {}

    def reference(*words: str) -> Path:
        if words not in made:
            there = Runs(make_main_job(tmp_path_factory.mktemp("reference")))
            made[words] = there.folder()
            ended = there.run(made[words], *words)
            assert ended.code == 0, ended.err
        return made[words]

    return reference


@pytest.fixture(scope="session", autouse=True)
def imported() -> Iterator[None]:
    """Everything a run imports, before the first fork."""
    for name in ("train", "razor.train.run", "razor.cli.job", "lm_eval", "datasets", "matplotlib.pyplot"):
        importlib.import_module(name)
    yield


def moments(seed: int) -> list[Moment]:
    """Twenty moments: the kinds are fixed, which occasion of each is drawn."""
    draw = random.Random(seed)
    pick = draw.randint
    return [
        *(Moment("time", round(draw.uniform(0.01, 1.5), 2)) for _ in range(3)),  # start-up, mostly
        Moment("razor.storage.os.replace", pick(0, 3)),
        Moment("razor.data.teacher_made.save_shard", 0),
        Moment("razor.train.budget.atomic_write", 0),
        *(Moment("razor.train.module.DistillModule.training_step", pick(0, 7)) for _ in range(3)),
        Moment("torch.optim.adamw.AdamW.step", pick(0, 7), after=True),
        Moment("razor.train.checkpoints.torch.save", pick(0, 2), after=True),
        Moment("razor.train.checkpoints.os.replace", pick(0, 1), after=True),
        Moment("razor.train.checkpoints.os.replace", 0),
        Moment("razor.train.evaluation.score_held_out", pick(0, 2)),
        Moment("razor.train.evaluation.score_held_out", 2, after=True),
        Moment("razor.train.evaluation.atomic_write", pick(0, 2)),
        Moment("razor.export.packed.file_digest", 0, after=True),
        Moment("razor.train.finish.save_packed", 0, after=True),
        Moment("razor.export.packed.load_packed", 0),
        Moment("razor.evals.report.Report.save", 0),
    ]
