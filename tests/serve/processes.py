"""`razor serve` and `razor playground` in processes of their own, on ports of the system's choice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]


LIMIT = 300.0
"""Seconds that a process may take to begin or to end on a busy machine."""


class Heard:
    """What a stream says, read by a thread of its own: a pipe that is full would make its writer wait.

    Args:
        stream: of a process.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.text, self.over = "", False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                self.text += line
                self._news.notify_all()
        with self._news:
            self.over = True
            self._news.notify_all()

    def until(self, words: str) -> str:
        """Everything up to the end of the line that holds words; all there is where that line never comes."""
        with self._news:
            self._news.wait_for(lambda: words in self.text or self.over, LIMIT)
            before, found, after = self.text.partition(words)
        return before + found + after.partition("\n")[0] + "\n" if found else self.text

    def whole(self) -> str:
        """Everything, once it is over."""
        self._thread.join(LIMIT)
        return self.text


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
        assert self.process.stdout is not None and self.process.stderr is not None
        self._out, self._err = Heard(self.process.stdout), Heard(self.process.stderr)
        try:
            self.said = self._out.until(self.told)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said)
            assert found, self.said + self._err.text
        except BaseException:
            self.kill()
            raise
        self.url, self.port = found.group(0), int(found.group(1))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; exit code, and what it said afterwards."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        return code, self._out.whole().removeprefix(self.said), self._err.whole()

    def kill(self) -> None:
        """End it, if it has not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for heard, stream in ((self._out, self.process.stdout), (self._err, self.process.stderr)):
            heard.whole()
            if stream is not None:
                stream.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Serving(Started):
    """`razor serve`."""

    verb, told = "serve", "-d '"


class Served(Serving):
    """`razor serve` of a model."""

    def __init__(self, run: Path, *words: str, **environment: str) -> None:
        super().__init__(f"run={run}", "context=1024", *words, **environment)


class Shown(Started):
    """`razor playground`."""

    verb, told = "playground", "open "

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        super().__init__(f"folder={folder}", *words)
