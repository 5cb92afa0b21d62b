"""Cells of a study made by commands: one after the other, those that are there skipped.

A command is what a person would type; it runs in a process of its own with its output on the screen. A run of
train.py has a folder of its own, so one that was stopped goes on where it was.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import study_cells

from razor.errors import RazorError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]


def options_of(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """`name=value` words over the defaults.

    Raises:
        RazorError: a word that is no option.
    """
    options = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise RazorError(f"'{word}' is no option: name=value.{did_you_mean(key, options)}")
        options[key] = value
    return options


def chosen(options: Mapping[str, str], key: str, choices: Sequence[str]) -> list[str]:
    """A comma-separated option.

    Raises:
        RazorError: a value that is no choice.
    """
    values = options[key].split(",")
    for value in values:
        if value not in choices:
            raise RazorError(f"{key}={value}. Choices: {', '.join(choices)}.")
    return values


def numbers(options: Mapping[str, str], key: str) -> list[int]:
    """A comma-separated option of whole numbers.

    Raises:
        RazorError: a value that is none.
    """
    values = options[key].split(",")
    if not all(value.isdigit() for value in values):
        raise RazorError(f"{key}={options[key]} must be whole numbers, as in {key}=0,1,2.")
    return [int(value) for value in values]


def train(words: Sequence[str], run: Path) -> list[str]:
    """The command of a run of train.py in a folder of its own."""
    return ["train.py", *words, f"hydra.run.dir={run}"]


def done(command: Sequence[str]) -> None:
    """Run a script, its command on the screen.

    Raises:
        RazorError: it failed.
    """
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if code := _finished(command):
        raise RazorError(f"That ended with code {code}; the same command goes on.")


def _finished(command: Sequence[str]) -> int:
    """The exit code of a script. After Ctrl-C, which reaches it too, it is given the time to save what it has."""
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            child.wait()
        except KeyboardInterrupt:  # a second one
            child.kill()
        raise


def make(path: Path, command: Sequence[str], told: Mapping[str, Any], run: Path | None = None) -> bool:
    """Make a cell, unless it is there.

    Args:
        path: of its file.
        command: script and words, below the repository.
        told: study, rung, quant, method: what a run's report does not say.
        run: folder of the run of train.py whose trained model is the cell; None: the command writes the file.

    Returns:
        Whether it was made now.

    Raises:
        RazorError: the command failed.
    """
    if path.is_file():
        print(f"{path.name}: is there", flush=True)
        return False
    done(command)
    if run is not None:
        study_cells.write(
            path, study_cells.of_run(ROOT / run, **told, command=shlex.join(["python", *command]))
        )
    return True
