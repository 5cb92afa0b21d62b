"""Runs of two real processes that talk over gloo, and what they are held against.

Every run here is a command of its own, started as a person starts it, in a session of its own, so that a signal
reaches what a test means and nothing else. What it prints goes into a file: a pipe would stay open for as long as
any of its processes lives. Nothing is waited for without end, and no process outlives its test.

Runs that nothing interrupts are made once: `one` (a single process), `ddp` and `fsdp2` (two).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, merged
from tests.dist.held_against import EVERY, STEPS, metrics_of

WORDS = (
    f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_every={EVERY}",
    "trainer.accumulate=2",  # one micro-batch each of two processes, two of one
    "trainer.compute_dtype=float32",
    "distill.losses.eakld.gamma=0.4",  # by itself it is 0 for a random teacher, and half the loss idle
    "data.held_out=5",  # three batches, which cannot be dealt evenly
)
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=localhost:0",
)
PATIENCE = 300.0
"""Seconds that anything may take."""


class Command:
    """A command and all processes that it starts.

    Args:
        words: after `python`.
        folder: of the run.
        cache: $RAZOR_CACHE.
    """

    def __init__(self, words: tuple[str, ...], folder: Path, cache: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=os.environ | {"RAZOR_CACHE": str(cache), "RAZOR_HEAP": "off", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def printed(self) -> str:
        """By all of its processes so far."""
        return self.log.read_text()

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started; also after its own end."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)
        return [self._seen[pid] for pid in sorted(self._seen)]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true while the command runs."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"exit code {self.process.poll()} while waiting: {self.printed[-4000:]}")
            time.sleep(0.01)
        self.workers()

    def trained(self) -> None:
        """Wait for the first checkpoint and the row of a step after it; many steps are left then."""
        last = self.folder / "checkpoints" / "last.ckpt"
        self.until(lambda: last.is_file() and len(metrics_of(self.folder)) > EVERY + 1)
        assert len(self.workers()) in (0, 2)

    def ended(self) -> int:
        """Its exit code, once all of its processes have ended."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs: {self.printed[-4000:]}")
        _, left = psutil.wait_procs(self.workers(), 60)
        assert not left, f"outlived the command: {left}"
        return code

    def kill(self) -> None:
        """SIGKILL to all of it."""
        workers = self.workers()
        self.process.kill()
        for process in workers:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE)
        psutil.wait_procs(workers, 60)


class Place:
    """Where runs are started, each in a new folder.

    Args:
        main_job: for the runs of one process.
        home: of their folders.
    """

    def __init__(self, main_job: Any, home: Path) -> None:
        self.main_job, self.home = main_job, home
        self.commands: list[Command] = []

    def begin(self, *words: str, by: tuple[str, ...] = ()) -> Command:
        """A new run, in processes of its own; `by` starts them, if Razor shall not."""
        folder = self.main_job.folder()
        return self._start((*by, "train.py", *merged(*WORDS, *words), f"hydra.run.dir={folder}"), folder)

    def go_on(self, folder: Path, *words: str) -> Command:
        """Continue a run, in processes of its own."""
        return self._start(("train.py", f"run={folder}", "ckpt=last", *words), folder)

    def whole(self, *words: str, by: tuple[str, ...] = ()) -> Path:
        """The folder of a new run that came to its end."""
        command = self.begin(*words, by=by)
        assert command.ended() == 0, command.printed[-4000:]
        return command.folder

    def alone(self, *words: str) -> Path:
        """The folder of a new run of one process, this one."""
        done = self.main_job(*WORDS, *words)
        assert done.code == 0, done.err
        return done.folder

    def go_on_alone(self, folder: Path) -> Path:
        """Continue a run of several processes in one, this one."""
        where = ("trainer.strategy=single", "trainer.devices=1", "trainer.shard_teacher=false")
        resumed = self.main_job.resume(folder, *where)
        assert resumed.code == 0, resumed.err
        assert "Continuing from" in resumed.out and "scoring" not in resumed.err
        return folder

    def copied(self, folder: Path) -> Path:
        """A copy, to be continued in another way."""
        return Path(shutil.copytree(folder, self.main_job.folder()))

    def _start(self, words: tuple[str, ...], folder: Path) -> Command:
        self.commands.append(Command(words, folder, self.main_job.cache))
        return self.commands[-1]

    def clear(self) -> None:
        """Whatever went wrong, nothing goes on running."""
        for command in self.commands:
            command.kill()


@pytest.fixture
def place(main_job: Any, tmp_path: Path) -> Iterator[Place]:
    here = Place(main_job, tmp_path)
    yield here
    here.clear()


@pytest.fixture(scope="session")
def kept_place(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Of the runs that tests share; look, don't change."""
    home = tmp_path_factory.mktemp("dist")
    here = Place(make_main_job(home), home)
    yield here
    here.clear()


@pytest.fixture(scope="session")
def one(kept_place: Place) -> Path:
    return kept_place.alone()


@pytest.fixture(scope="session")
def ddp(kept_place: Place) -> Path:
    return kept_place.whole("trainer=ddp", *TWO)


@pytest.fixture(scope="session")
def fsdp2(kept_place: Place) -> Path:
    return kept_place.whole("trainer=fsdp2", *TWO)
