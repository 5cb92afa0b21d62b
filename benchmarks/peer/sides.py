"""Two processes that take turns, and what each of them says about its memory.

Speed on a shared machine drifts by tens of percent within minutes. So the sides of a comparison are children of
one process that asks each in turn for one piece of work: only one works at any time, a slow minute hits both, and
the ratio is taken round by round. Both get the same threads and the same heap settings, those of train.py.

A child is a module that calls `serve`. It is told its job as JSON on the command line, then reads one word a line
and answers with one JSON object a line; whatever else it prints is kept aside, and shown if it dies. This module
runs in the peer's environment too, and therefore imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}
"""As in train.py. They make a CPU fast, but a heap that is never given back has holes: its peak says what a user of
these settings sees, and the peak without them what the work itself needs."""

BENCHMARKS = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")


class Side:
    """A child process that does one side of a benchmark, one word at a time.

    Args:
        name: for messages.
        python: the interpreter of its environment.
        module: what to run; below `benchmarks/`.
        job: what it is told; plain data.
        threads: of its matrix products.
        heap: with the heap settings of train.py, or with the system's own.
    """

    def __init__(
        self,
        name: str,
        python: Path | str,
        module: str,
        job: Mapping[str, Any],
        threads: int,
        heap: bool = True,
    ) -> None:
        self.name, self.aside = name, tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        self.process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.aside,
            env=environment(threads, heap),
            cwd=BENCHMARKS,
            text=True,
        )
        self.start = self._answer()

    def ask(self, word: str) -> dict[str, Any]:
        """What the child answers."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, and `_answer` says of what
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the child; it is idle now."""
        self.process.communicate()
        self.aside.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # some library greets as it is imported
            line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.aside.seek(0)
            last = self.aside.read().decode(errors="replace")[-4000:]
            sys.exit(f"{last}\nThe side '{self.name}' ended with code {self.process.returncode}; see above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(prepare: Callable[[dict[str, Any]], Mapping[str, Callable[[], dict[str, Any]]]]) -> None:
    """Be a child: prepare the job, then answer words until the parent is gone.

    Args:
        prepare: from the job to what each word does; libraries are imported before, models made in it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's greeting is no answer
    before = resident()
    words = prepare(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        word = line.strip()
        found = {"before": before, "peak": highest()} if word == "memory" else words[word]()
        print(json.dumps(found), file=answers, flush=True)


def environment(threads: int, heap: bool = True) -> dict[str, str]:
    """Variables of a child: threads and heap settings."""
    others = {key: value for key, value in os.environ.items() if key not in HEAP}
    count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return others | count | (HEAP if heap else {})


def in_turn(sides: Sequence[Side], word: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Ask every side `rounds` times, the sides in turn, the first of each pair changing; answers by name."""
    answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            answers[side.name].append(side.ask(word))
    return answers


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios taken round by round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def ratio(by_side: Mapping[str, float | None]) -> float | None:
    """Ours / peer of something that may be unknown."""
    own, other = by_side["ours"], by_side["peer"]
    return own / other if own and other else None


def end(running: Sequence[Side]) -> None:
    """Close all."""
    for side in running:
        side.close()


def resident() -> int | None:
    """Bytes of memory of this process now; None where the system does not tell."""
    return _status("VmRSS")


def highest() -> int | None:
    """Most bytes of memory this process had since it started, or since `count_anew`."""
    return _status("VmHWM")


def count_anew() -> int | None:
    """Give unused heap back to the system, start `highest` again, and return what is in use.

    Without the first, memory that an earlier piece of work used and freed would serve the next one unseen.
    """
    if not STATUS.is_file():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def _status(field: str) -> int | None:
    found = STATUS.is_file() and re.search(rf"{field}:\s+(\d+)", STATUS.read_text())
    return 1024 * int(found.group(1)) if found else None


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages named, as installed here."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    information = Path("/proc/cpuinfo")
    model = information.is_file() and re.search(r"model name\s*:\s*(.+)", information.read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads,
        "memory": memory,
        "system": platform.platform(terse=True),
    }


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_options(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`name=value` words over the defaults, each in its default's type; an unknown name ends the program."""
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    if unknown := sorted(set(given) - set(defaults)):
        sys.exit(f"Unknown option {unknown[0]}. Choices: {', '.join(defaults)}.")
    kinds = {key: _switch if isinstance(value, bool) else type(value) for key, value in defaults.items()}
    try:
        return {key: kinds[key](given.get(key, value)) for key, value in defaults.items()}
    except ValueError as error:
        sys.exit(f"An option has a wrong value: {error}.")


def choice(options: Mapping[str, Any], name: str, choices: Sequence[str]) -> None:
    """End the program if an option has none of these values."""
    if options[name] not in choices:
        sys.exit(f"{name}={options[name]}. Choices: {', '.join(choices)}.")


def _switch(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"'{value}' is neither true nor false")
    return str(value).lower() == "true"
