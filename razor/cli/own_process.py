"""A job of a sweep in a process of its own.

Jobs that share a process share its memory, its threads, its random state and its GPU, and what one of them breaks
(a crash inside a kernel, an exhausted GPU, the kernel's out-of-memory killer) breaks all that follow. So a sweep
starts each job anew. The config goes in through a pipe that stays open while the job runs: if the sweep dies, the
job sees the pipe end, finishes its step, saves and stops, so that no orphan writes into a folder which the
resumed sweep works in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

END = "# end of config\n"
START = "import sys; from razor.cli.own_process import main; sys.exit(main(sys.argv[1]))"


def run_apart(config: DictConfig, folder: Path, log: Path | None) -> int:
    """Run a job in a new process and wait for it; returns its exit code, negative if a signal killed it.

    Args:
        config: of the job.
        folder: of the job.
        log: file for what it prints; None: where this process prints.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("ab"))
        child = subprocess.Popen(
            [sys.executable, "-c", START, str(folder)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
        )
        assert child.stdin is not None
        try:
            child.stdin.write((OmegaConf.to_yaml(config, resolve=True) + END).encode())
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its exit code tells
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)


def main(folder: str) -> int:
    """What the new process does; returns the exit code of the job."""
    lines = []
    while (line := sys.stdin.readline()) not in (END, ""):
        lines.append(line)
    if line != END:  # the sweep is gone already
        return 130
    threading.Thread(target=stop_with_the_sweep, daemon=True).start()
    from razor.cli.guard import guarded
    from razor.cli.job import attempt

    config = OmegaConf.create("".join(lines))
    assert isinstance(config, DictConfig)
    words = ["debug=true"] if config.get("debug") else []
    return guarded(lambda: attempt(config, Path(folder)), words)


def stop_with_the_sweep() -> None:
    """Wait for the pipe to end, then stop this process as Ctrl-C would."""
    while os.read(0, 1 << 10):  # not sys.stdin.read, whose lock Python would miss at its exit
        pass
    os.kill(os.getpid(), signal.SIGINT)
