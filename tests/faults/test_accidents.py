"""Other accidents: a full disk, damaged files, a cache that somebody cleaned. All are said, none loses a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Moment, Runs, assert_nothing_half_written, assert_same_end

pytestmark = [pytest.mark.slow, pytest.mark.faults]
IN_TRAINING = Moment("razor.train.module.DistillModule.training_step", 5)
"""After the first checkpoint, before the second."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many kB; unmounted in the end."""
    places: list[Path] = []

    def mounted(kilobytes: int) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a disk of a certain size takes Linux and the right to mount one")
        places.append(place)
        return place

    yield mounted
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [2_600, 5_200, 6_800])
def test_a_full_disk(
    runs: Runs, references: Callable[..., Path], small_disk: Callable[[int], Path], kilobytes: int
) -> None:
    """Full at the first checkpoint, at a later one, or in the end; with room it goes on as if nothing had been."""
    folder = small_disk(kilobytes) / "run"

    def careless() -> None:  # there is a check before a run begins, which would say it at once
        import razor.train.job

        razor.train.job.require_space = lambda *_, **__: None

    full = runs.run(folder, before=careless)
    assert full.code == 2 and "No space left" in full.err and "Traceback" not in full.err, full
    assert full.err.strip().splitlines()[-1].startswith("razor: ")
    assert_nothing_half_written(folder)
    assert not [path for path in folder.rglob(".*") if path.name.startswith((".last", ".packed", ".report"))]
    roomy = runs.folder()
    shutil.copytree(folder, roomy)
    resumed = runs.resume(roomy)
    assert resumed.code == 0, resumed.err
    assert_same_end(roomy, references())


def test_the_check_before_a_run_sees_a_disk_too_small(runs: Runs, small_disk: Callable[[int], Path]) -> None:
    refused = runs.run(small_disk(2_000) / "run")
    assert refused.code == 2 and "GB free" in refused.err


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("config.yaml", True),
        ("recipe.yaml", True),
        ("budget.json", True),
        ("checkpoints/last.ckpt", True),  # there is no earlier one yet
        ("scores/teacher.json", False),
        ("logs/metrics.csv", False),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_file(
    runs: Runs, references: Callable[..., Path], name: str, refused: bool, damage: str
) -> None:
    """One line that names the file, or the run goes on and ends as it would have."""
    folder = runs.folder()
    runs.run(folder, before=IN_TRAINING.arm)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x00{[" + content[3:])
    resumed = runs.resume(folder)
    if refused:
        lines = resumed.err.strip().splitlines()
        assert resumed.code == 2 and lines[-1].startswith("razor: ") and path.name in lines[-1], resumed
        path.write_bytes(content)
        resumed = runs.resume(folder)
    assert resumed.code == 0, resumed.err
    if name != "logs/metrics.csv":
        assert_same_end(folder, references())


def test_an_unreadable_file(runs: Runs) -> None:
    folder = runs.folder()
    runs.run(folder, before=IN_TRAINING.arm)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.unlink()
    checkpoint.symlink_to(folder / "nowhere")  # root reads everything that is there
    resumed = runs.resume(folder)
    assert resumed.code == 2 and "last.ckpt" in resumed.err, resumed


def test_a_teacher_cache_that_is_gone(runs: Runs, tmp_path: Path) -> None:
    """Cleaned away while a run was interrupted: a refusal with the command that makes the targets again."""
    cached = ("teacher=cached", "distill=kld", f"teacher_targets={tmp_path / 'targets'}")
    make = [sys.executable, "-m", "razor", "cache_teacher", *runs.main_job.words("data.source.tokens=2000")]
    skipped = ("evals", "logger", "trainer.max_steps")
    words = [*(word for word in make if not word.startswith(skipped)), f"out={tmp_path / 'targets'}"]
    environment = os.environ | {"RAZOR_CACHE": str(runs.main_job.cache)}
    subprocess.run(words, check=True, env=environment, capture_output=True)
    reference, folder = runs.folder(), runs.folder()
    assert runs.run(reference, *cached).code == 0
    runs.run(folder, *cached, before=IN_TRAINING.arm)
    shutil.rmtree(tmp_path / "targets")
    refused = runs.resume(folder)
    assert refused.code == 2 and "razor cache_teacher" in refused.err and "Traceback" not in refused.err
    subprocess.run(words, check=True, env=environment, capture_output=True)
    resumed = runs.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, reference)


def test_teacher_made_text_that_is_gone_or_damaged(
    runs: Runs, references: Callable[..., Path], tmp_path: Path
) -> None:
    """Text is written again, the same, since it is a function of model and seed."""
    runs.main_job.cache, folder = tmp_path / "cache", runs.folder()
    runs.run(folder, before=IN_TRAINING.arm)
    shards = [path for path in runs.main_job.cache.rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert shards
    for path in shards:
        path.write_bytes(path.read_bytes()[:-7])
    resumed = runs.resume(folder)
    assert resumed.code == 0, resumed.err
    assert_same_end(folder, references())
