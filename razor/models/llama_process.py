"""llama.cpp in a process of its own: a crash there is an error here.

llama.cpp aborts where it finds itself wrong, and a damaged file can lead it there. So whoever opens a file that
may be bad, or must not die, talks to a child: a line of JSON for each question, a line of JSON and the raw
numbers for each answer. The child is this file, run by its path, so that it starts without torch, and imports
nothing from the folder that this process happens to stand in.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from razor.errors import RazorError

CODE = """
import sys
sys.path[:] = [sys.argv[2], *filter(None, sys.path)]  # "" is the current folder; nothing was imported from it yet
import runpy
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class LlamaCrash(RazorError):
    """llama.cpp ended the process that it ran in."""


def check_apart(gguf: Path) -> None:
    """Open a file and read a token in a process of its own, before it is opened in one that must not die.

    Raises:
        LlamaCrash: llama.cpp crashed on it. Whatever else it has against the file is for whoever opens it to say.
    """
    try:
        with LlamaProcess(gguf, context=64) as llama:
            llama.read([0])
    except LlamaCrash:
        raise
    except RazorError:
        pass


class LlamaProcess:
    """A GGUF file, open in llama.cpp in a child process; arguments and methods are those of `LlamaRuntime`.

    Raises:
        RazorError: as `LlamaRuntime`, and where llama.cpp crashes (`LlamaCrash`).
    """

    def __init__(
        self,
        gguf: Path,
        context: int = 512,
        kv: str = "f16",
        flash: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.gguf = gguf
        here = Path(__file__).resolve()
        root = here.parent.parent.parent
        self._child = subprocess.Popen(
            [sys.executable, "-c", CODE, str(here), str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            given = {"gguf": str(gguf), "context": context, "kv": kv, "flash": flash, "threads": threads}
            opened = self._ask(given)
        except BaseException:
            self.close()
            raise
        self.vocabulary, self.version = int(opened["vocabulary"]), str(opened["version"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._crashed()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RazorError(answer["error"])
        return answer

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """See `LlamaRuntime.tokenize`."""
        return list(self._ask({"text": text, "special": special})["tokens"])

    def logits(self, tokens: Sequence[int], first: int = 0, kept: int = 0) -> NDArray[np.float32]:
        """See `LlamaRuntime.logits`."""
        return self._numbers({"tokens": list(map(int, tokens)), "first": int(first), "kept": int(kept)})

    def read(self, tokens: Sequence[int], start: int = 0) -> NDArray[np.float32]:
        """See `LlamaRuntime.read`."""
        return self._numbers({"tokens": list(map(int, tokens)), "start": int(start)})

    def _numbers(self, question: dict[str, Any]) -> NDArray[np.float32]:
        """An answer whose numbers follow its line."""
        shape = self._ask(question)["shape"]
        size = 4 * math.prod(shape)
        assert self._child.stdout is not None
        raw = self._child.stdout.read(size)
        if len(raw) < size:
            raise self._crashed()
        return np.frombuffer(raw, np.float32).reshape(shape)

    def _crashed(self) -> RazorError:
        code = self._child.wait()
        return LlamaCrash(f"llama.cpp crashed on '{self.gguf}' (exit code {code}): the file may be damaged.")

    def close(self) -> None:
        """End the child."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._child.kill()
        self._child.wait()

    def __enter__(self) -> LlamaProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """The child: open what the first line names, then answer until nobody asks."""
    from razor.models.llama_library import version
    from razor.models.llama_runtime import LlamaRuntime

    runtime: LlamaRuntime | None = None
    for line in questions:
        question, numbers = json.loads(line), b""
        try:
            if runtime is None:
                runtime = LlamaRuntime(**question | {"gguf": Path(question["gguf"])})
                answer: dict[str, Any] = {"vocabulary": runtime.vocabulary, "version": version()}
            elif "text" in question:
                answer = {"tokens": runtime.tokenize(question["text"], question["special"])}
            else:
                tokens, start = question["tokens"], question.get("start")
                if start is None:
                    found = runtime.logits(tokens, question["first"], question["kept"])
                else:
                    found = runtime.read(tokens, start)
                answer, numbers = {"shape": found.shape}, found.tobytes()
        except RazorError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n" + numbers)
        answers.flush()


def _without_its_package() -> None:
    """Let the neighbours be imported without `razor/models/__init__.py`, which would import torch."""
    package = types.ModuleType("razor.models")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["razor.models"] = package


if __name__ == "__main__":
    _without_its_package()
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(2, sys.stdout.fileno())  # whatever a library prints does not get between the answers
    _serve(sys.stdin.buffer, own)
