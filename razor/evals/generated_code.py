"""Running programs that a model wrote: HumanEval's pass@1, in a process with limits.

lm-eval hands each completed function with its tests to the metric `code_eval` of the hub, which runs them in a
process like any other. Here the same programs run in a child that has a clock, a bound on memory, an empty folder,
an environment without our variables, no network where the system allows it (Linux with user namespaces), and a
hook that refuses sockets, other processes and writing elsewhere. **That is a fence, not a prison**: it holds what
models write by accident; for code of somebody who means harm, take a virtual machine. So nothing runs without
`evals.run_generated_code=true`.

pass@1 of one answer a problem is the share of problems whose tests pass (Chen et al. 2021, arXiv 2107.03374,
equation 1 with n = k = 1).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from razor.errors import RazorError

CHILD = Path(__file__).with_name("generated_child.py")
SECONDS = 5
"""Of processor time for a program, the start of Python included; `code_eval` gives 3 by the clock on the wall."""
PATIENCE = 20.0
"""Seconds by the clock on the wall, for programs that wait instead of computing, and for busy machines."""
MEMORY, FILE_SIZE = 2 << 30, 1 << 20
FAMILIES = ("humaneval", "mbpp")
"""Beginnings of the names of lm-eval's tasks that run code."""
FLAG = "evals.run_generated_code"


def runs_code(task: str) -> bool:
    """Whether a task of this name runs what the model writes."""
    return task.startswith(FAMILIES)


def check_flag(tasks: Sequence[str], allowed: bool) -> None:
    """Raise RazorError if one of the tasks runs generated code and nobody allowed it."""
    asking = [task for task in tasks if runs_code(task)]
    if asking and not allowed:
        raise RazorError(
            f"{', '.join(asking)} runs programs that the model writes, in a process with limits "
            f"(docs/benchmarks.md): {FLAG}=true allows it (+{FLAG}=true with evals=quick), or leave the "
            "task out of evals.tasks."
        )
    if asking and os.name != "posix":
        raise RazorError(f"{', '.join(asking)}: generated code is run with limits on Linux and macOS alone.")


def outcome(program: str, seconds: int = SECONDS, patience: float = PATIENCE, memory: int = MEMORY) -> str:
    """Run a program in a child with limits.

    Args:
        program: Python, complete: a function and what tests it.
        seconds: of processor time.
        patience: seconds by the clock on the wall.
        memory: bytes of address space.

    Returns:
        "passed", "stopped" (a limit was reached), or "failed" with the name of the exception.
    """
    secret = secrets.token_hex(16)
    reading, writing = os.pipe()
    job = {"program": program, "secret": secret, "pipe": writing, "seconds": seconds}
    job |= {"memory": memory, "file_size": FILE_SIZE}
    plain = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="razor_code_") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD)],
            cwd=folder,
            env=plain,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        late = False
        try:
            child.communicate(json.dumps(job).encode(), timeout=patience)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
            child.wait()
            said = _waiting_in(reading)
    if said == secret and child.returncode == 0 and not late:
        return "passed"
    if late or (not said and child.returncode < 0):
        return "stopped"
    return f"failed ({said or f'exit code {child.returncode}'})"


def _waiting_in(pipe: int) -> str:
    """What was written into a pipe, without waiting for whoever may still hold its other end."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 300).decode(errors="replace")
    except BlockingIOError:
        return ""
    finally:
        os.close(pipe)


class CodeEval:
    """Stands in for the hub's metric `code_eval`: the same call, our child process.

    lm-eval's HumanEval tries the metric once while it is loaded, on a function that is no model's; `live` is what
    tells that from a model's answers.
    """

    def __init__(self) -> None:
        self.live = False

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1,),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, Any]]:
        """Pass@1 over problems, as a fraction, and nothing in detail.

        Args:
            references: the tests of each problem.
            predictions: for each problem its one answer, in a list.
            k: [1].

        Raises:
            RazorError: more than one answer a problem, or another k: Razor reports pass@1 alone.
        """
        if list(k) != [1] or any(len(answers) != 1 for answers in predictions):
            raise RazorError(f"pass@{list(k)}: Razor runs one answer a problem and reports pass@1.")
        if not self.live:
            return {"pass@1": 0.0}, {}
        programs = [f"{answers[0]}\n{test}" for answers, test in zip(predictions, references, strict=True)]
        passed = [outcome(program) == "passed" for program in programs]
        return {"pass@1": sum(passed) / len(passed)}, {}


@contextmanager
def own_code_eval() -> Iterator[CodeEval]:
    """While tasks are loaded, `evaluate.load("code_eval")` gives ours: no hub, and the limits of this module."""
    import evaluate

    original, ours = evaluate.load, CodeEval()

    def load(path: str, *rest: Any, **more: Any) -> Any:
        return ours if path == "code_eval" else original(path, *rest, **more)

    evaluate.load = load
    try:
        yield ours
    finally:
        evaluate.load = original


def use_own(task: Any, ours: CodeEval) -> None:
    """Make a loaded lm-eval task count by `ours`, even where its module was loaded before by somebody else."""
    for metric in task._metric_fn_list.values():
        names = getattr(getattr(metric, "__self__", metric), "__globals__", {})
        if "compute_" in names:
            names["compute_"] = ours
    ours.live = True
