"""`razor serve` and `razor playground` in processes of their own, on ports of the system's choice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]


class Started:
    """A verb of razor.cli.talk that goes on until it is told to end.

    Args:
        words: of the command; `port=0` is among them.
        environment: variables beside those of this process.
    """

    verb: ClassVar[str]
    told: ClassVar[str]
    """What it prints last before it waits."""

    def __init__(self, *words: str, **environment: str) -> None:
        start = f"import sys; from razor.cli.talk import {self.verb}; sys.exit({self.verb}(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, "port=0", *words],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        try:
            while self.told not in self.said and (line := self.process.stdout.readline()):
                self.said += line
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said)
            assert found, self.said + str(self.process.stderr and self.process.stderr.read())
        except BaseException:
            self.kill()
            raise
        self.url, self.port = found.group(0), int(found.group(1))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; exit code, and what it said afterwards."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """End it, if it has not."""
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.process.wait()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Served(Started):
    """`razor serve`."""

    verb, told = "serve", "-d '"

    def __init__(self, run: Path, *words: str, **environment: str) -> None:
        super().__init__(f"run={run}", "context=1024", *words, **environment)


class Shown(Started):
    """`razor playground`."""

    verb, told = "playground", "open "

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        super().__init__(f"folder={folder}", *words)
