"""A main job small enough for tests: a random model, a few hundred tokens, a cache that is thrown away."""

from __future__ import annotations

import gc
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Tiny models gain nothing from threads, and on a busy machine threads that wait for each other lose much.
# Set before anything imports torch; processes started by tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = (
    "model=tiny_llama",
    "evals=none",
    "logger=csv",
    "trainer=cpu",  # where the same numbers come out to the last digit
    "trainer.max_steps=2",
    "data.source.tokens=3000",
    "data.held_out=4",
    "data.sequence_length=128",
)


def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection: a million objects that each collection would visit."""
    gc.collect()
    gc.freeze()


@dataclass
class Outcome:
    """What a command did: exit code, what it printed, where its run lies."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def problem(self) -> str:
        """The one line on stderr (bars aside) that bad input has to end in."""
        assert self.code == 2, f"exit code {self.code}: {self.err or self.out}"
        lines = [
            line
            for line in self.err.splitlines()
            if line and not line.startswith(("teacher writes:", "Teacher-made text:"))
        ]
        assert len(lines) == 1 and lines[0].startswith("razor: "), self.err
        return lines[0]


def merged(*words: str) -> list[str]:
    """TINY with `words` in it: a key given twice has its last value, `-key` takes it away."""
    chosen = {word.partition("=")[0]: word for word in (*TINY, *words)}
    return [word for key, word in chosen.items() if not key.startswith("-") and f"-{key}" not in chosen]


def in_process(command: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; Hydra's logging is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = command()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    return code, out.getvalue(), err.getvalue()


class MainJob:
    """`python train.py` on the tiny model, in this process or in one of its own."""

    def __init__(self, cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.home, self.monkeypatch = cache, home, monkeypatch
        self.count = 0

    def folder(self) -> Path:
        """A new run folder, not yet there."""
        self.count += 1
        return self.home / f"run{self.count}"

    def words(self, *words: str) -> list[str]:
        """Overrides of a tiny job with `words` in it (see `merged`)."""
        return merged(*words)

    def __call__(self, *words: str, folder: Path | None = None) -> Outcome:
        """Run in this process, as train.py does, with the machine's speed not measured."""
        folder = folder or self.folder()
        return self.command(*merged(*words), f"hydra.run.dir={folder}", folder=folder)

    def resume(self, folder: Path, *words: str) -> Outcome:
        """Continue the run in `folder`, in this process."""
        return self.command(f"run={folder}", "ckpt=last", *words, folder=folder)

    def command(self, *words: str, folder: Path) -> Outcome:
        """`python train.py WORDS` in this process."""
        import train

        with self.monkeypatch.context() as patch:
            patch.setenv("RAZOR_CACHE", str(self.cache))
            patch.setattr(sys, "argv", ["train.py", *words])
            patch.setattr("razor.train.estimate.speed.matrix_speed", lambda *_: 1e11)
            return Outcome(*in_process(train.main), folder)

    def start(self, *words: str, **environment: str | None) -> subprocess.Popen[str]:
        """`python train.py WORDS` in a process of its own, with exactly these words; None unsets a variable."""
        variables = os.environ | {"RAZOR_CACHE": str(self.cache), "RAZOR_HEAP": "off"} | environment
        return subprocess.Popen(
            [sys.executable, "train.py", *words],
            cwd=ROOT,
            env={key: value for key, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def process(self, *words: str, folder: Path | None = None, **environment: str | None) -> Outcome:
        """The same as calling, in a process of its own."""
        folder = folder or self.folder()
        started = self.start(*merged(*words), f"hydra.run.dir={folder}", **environment)
        out, err = started.communicate(timeout=1200)
        return Outcome(started.returncode, out, err, folder)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tiny jobs, so that the tiny teachers write their text once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def main_job(tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MainJob:
    return MainJob(tiny_cache, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def make_main_job(tiny_cache: Path) -> Iterator[Callable[[Path], MainJob]]:
    """Make a `MainJob` that outlives a test, its runs below a folder."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda home: MainJob(tiny_cache, home, patch)


@pytest.fixture(scope="session")
def finished_run(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A whole run in a process of its own, of somebody who is logged in nowhere; look, don't change."""
    home = tmp_path_factory.mktemp("finished")
    stranger = {"HOME": str(home), "WANDB_API_KEY": None, "WANDB_MODE": None}
    # at the default rate four steps do not help on every processor
    words = ("trainer.max_steps=4", "trainer.learning_rate=3e-4", "logger=default")
    return make_main_job(home).process(*words, **stranger)


@pytest.fixture
def razor(main_job: MainJob, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`razor WORDS` in this process, with the cache of `main_job`."""
    from razor import cli

    def run(*words: str) -> Outcome:
        monkeypatch.setenv("RAZOR_CACHE", str(main_job.cache))
        return Outcome(*in_process(lambda: cli.main(list(words))), Path())

    return run


@pytest.fixture
def tiny_student() -> Callable[..., Any]:
    """Make (student, plan, tokenizer, teacher) of a tiny model under an option of conf/quant."""
    import torch

    from razor import cli
    from razor.models import make_student

    def make(quant: str = "mixed_2p79", model: str = "tiny_llama", *overrides: str) -> Any:
        config = cli.composed("size", [f"model={model}", f"quant={quant}", *overrides])
        source, recipe = cli.model_source(config), cli.build(config.quant)
        teacher = source.load(torch.bfloat16)
        plan = recipe.plan(source.skeleton())
        return make_student(teacher, plan, torch.bfloat16), plan, source.tokenizer(), teacher

    return make
