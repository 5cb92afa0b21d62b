"""An engine that writes by a script, in the thread that engines write in; it notes what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from razor.errors import RazorError
from razor.serve.answer import Messages, Settings
from razor.serve.engine import Engine, Writing


class Scripted(Engine):
    """Writes by a script.

    Args:
        script: puts pieces into what it is given, and says why it ended.
        name: of the model.
    """

    runtime = "script"

    def __init__(self, script: Callable[[Writing], str], name: str = "scripted") -> None:
        super().__init__(name, 1000)
        self.script = script
        self.asked: list[tuple[list[dict[str, str]], Settings]] = []
        self.writers = self.freed = 0
        self.freed_under: list[int] = []
        """How many wrote when the memory was given back."""

    def _write(self, messages: Messages, settings: Settings, writing: Writing) -> str:
        self.asked.append((list(messages), settings))
        self.writers += 1
        try:
            return self.script(writing)
        finally:
            self.writers -= 1

    def _free(self) -> None:
        self.freed += 1
        self.freed_under.append(self.writers)


def saying(*pieces: str, ended: str = "end") -> Callable[[Writing], str]:
    """A script: these pieces, a token each."""

    def script(writing: Writing) -> str:
        for token, piece in enumerate(pieces, 1):
            if writing.over:
                break
            writing.put(piece, token)
        return ended

    return script


def endless(begun: threading.Event | None = None) -> Callable[[Writing], str]:
    """A script that writes until it is stopped."""

    def script(writing: Writing) -> str:
        tokens = 0
        while not writing.over:
            tokens += 1
            writing.put("x", tokens)
            if begun is not None:
                begun.set()
            writing.stop.wait(0.002)
        return "length"

    return script


def silent(begun: threading.Event) -> Callable[[Writing], str]:
    """A script that says when it was asked, and is stopped before it has a token."""

    def script(writing: Writing) -> str:
        begun.set()
        while not writing.over:
            writing.stop.wait(0.002)
        return "end"

    return script


def failing(reason: str = "too long") -> Callable[[Writing], str]:
    """A script of a runtime that refuses."""

    def script(writing: Writing) -> str:
        raise RazorError(reason)

    return script


def in_turn(scripts: Sequence[Callable[[Writing], str]]) -> Callable[[Writing], str]:
    """A script for each question, one after the other."""
    rest: Iterator[Callable[[Writing], str]] = iter(scripts)
    return lambda writing: next(rest)(writing)
