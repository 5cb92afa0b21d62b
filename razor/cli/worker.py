"""One of several processes of a run: continues the run that its words name (see `razor.cli.launch`).

The command that started it ends its processes before it ends itself, but not if it is killed by SIGKILL. Then they
would go on unseen, in a folder that the next command works in; so each of them looks whether it is still there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from razor import cli
from razor.cli.launch import only_first_talks


def main() -> int:
    """Return the exit code of the run."""
    command, *words = sys.argv[1:]
    done = threading.Event()
    threading.Thread(target=stop_with_the_command, args=(int(command), done), daemon=True).start()
    only_first_talks()
    try:
        return cli.guarded(lambda: cli.resume(words), words)
    finally:
        done.set()


def stop_with_the_command(command: int, done: threading.Event) -> None:
    """Wait until the command (a process number) is gone; stop as Ctrl-C would, unless this process is done."""
    while os.getppid() == command:
        if done.wait(0.5):
            return
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
