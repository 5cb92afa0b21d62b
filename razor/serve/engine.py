"""What answers in a chat: one interface over the runtimes, and the figures of an answer.

An engine holds one loaded model and gives one answer at a time. A thread of its own writes; whoever asked is handed
the answer as it grows and may stop it between two tokens, or while the prompt is still being read. The figures are
taken with one clock for all runtimes, where a token leaves the model:

    first                seconds from the question to the first token: reading the prompt, and the first step
    tokens_per_second    (tokens - 1) / (time of the last token - time of the first): the speed of writing alone
    model_bytes          bytes of the model's weights as the runtime holds them (packed codes stay packed)
    process_bytes        resident memory of the whole process at that moment: Python, runtimes, every loaded model
"""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import ClassVar

from razor.errors import RazorError

Messages = Sequence[dict[str, str]]
"""A conversation: role (system, user, assistant) and content of each message."""

LIMITS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1 << 20),
    "temperature": (0, 100),
    "top_p": (0.01, 1),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class Settings:
    """How an answer is drawn.

    Args:
        max_new_tokens: length limit of an answer, tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus of the distribution to sample from.
        seed: of the sampling; the same question gets the same answer.
        thinking: let a model think first that has learned to (Qwen3); its template decides what that means.

    Raises:
        RazorError: a number out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0
    thinking: bool = False

    def __post_init__(self) -> None:
        for key, (least, most) in LIMITS.items():
            value = getattr(self, key)
            whole = key in ("max_new_tokens", "seed")
            good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not good or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise RazorError(f"{key}='{value}' must be {kind} in {least}..{most}.")


@dataclass(frozen=True)
class Answer:
    """An answer as far as it has come; see the module for the figures.

    Attributes:
        text: so far.
        tokens: drawn so far.
        ended: "" while it grows; then `end` (the model ended it), `length` or `stopped`.
    """

    text: str = ""
    tokens: int = 0
    first: float | None = None
    tokens_per_second: float | None = None
    model_bytes: int = 0
    process_bytes: int = 0
    ended: str = ""

    def figures(self) -> str:
        """The figures as a line for people."""
        parts = [f"{self.tokens} token{'s' * (self.tokens != 1)}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        if self.first is not None:
            parts.append(f"first after {self.first:.2f} s")
        parts.append(f"model {self.model_bytes / 1e6:.1f} MB")
        if self.process_bytes:
            parts.append(f"process {self.process_bytes / 1e6:.0f} MB")
        reason = {"length": "length limit", "stopped": "stopped"}.get(self.ended)
        return ", ".join([*parts, *([reason] if reason else [])])


@dataclass
class Writing:
    """What the writing thread and the asking one share.

    Attributes:
        stop: the asker's; set when no more tokens are wanted.
        left: set when nobody listens any more.
        pieces: (text, tokens so far, seconds of a monotonic clock), an error, or at last how it ended.
    """

    stop: threading.Event
    left: threading.Event = field(default_factory=threading.Event)
    pieces: Queue[tuple[str, int, float] | BaseException | str] = field(default_factory=Queue)

    @property
    def over(self) -> bool:
        """Whether to stop writing."""
        return self.stop.is_set() or self.left.is_set()

    def put(self, text: str, tokens: int) -> None:
        """Hand over a piece of text (may be empty) after so many tokens."""
        self.pieces.put((text, tokens, time.perf_counter()))


class Engine(ABC):
    """A loaded model that answers, one answer at a time; others wait for their turn."""

    runtime: ClassVar[str]
    """What computes, as `engine=` says it."""

    def __init__(self, name: str, model_bytes: int) -> None:
        self.name, self.model_bytes = name, model_bytes
        self._turn = threading.Lock()

    @abstractmethod
    def _write(self, messages: Messages, settings: Settings, writing: Writing) -> str:
        """Write an answer, handing over every token (in the thread of its own); why it ended: `end` or `length`."""

    def _interrupt(self) -> None:  # noqa: B027 - most runtimes look at `writing.over` by themselves
        """Wake a `_write` that waits for something; called until it ends."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back."""

    def answer(
        self, messages: Messages, settings: Settings, stop: threading.Event | None = None
    ) -> Iterator[Answer]:
        """The answer to a conversation, each time it has grown; the last one is whole and says why it ended.

        Closing the iterator stops it too.

        Raises:
            RazorError: the conversation is longer than the model reads, or the runtime refuses.
        """
        writing = Writing(stop or threading.Event())
        with self._turn:
            start = time.perf_counter()
            thread = threading.Thread(target=self._thread, args=(messages, settings, writing), daemon=True)
            thread.start()
            try:
                yield from self._growing(writing, start)
            finally:
                writing.left.set()
                while thread.is_alive():
                    self._interrupt()
                    thread.join(0.02)

    def _thread(self, messages: Messages, settings: Settings, writing: Writing) -> None:
        try:
            ended = self._write(messages, settings, writing)
            writing.pieces.put("stopped" if writing.over else ended)
        except BaseException as error:  # told in the thread that asked
            writing.pieces.put(error)

    def _growing(self, writing: Writing, start: float) -> Iterator[Answer]:
        text, tokens, first, last, counted = "", 0, None, start, 0
        while True:
            try:
                piece = writing.pieces.get(timeout=0.05)
            except Empty:
                if writing.stop.is_set():
                    self._interrupt()
                continue
            if isinstance(piece, BaseException):
                raise piece
            ended = piece if isinstance(piece, str) else ""
            if isinstance(piece, tuple):
                text += piece[0]
                if piece[1] > tokens:
                    tokens, last = piece[1:]
                if first is None and tokens:
                    first, counted = last, tokens
            speed = (
                (tokens - counted) / (last - first) if first and tokens > counted and last > first else None
            )
            seconds = None if first is None else first - start
            memory = resident_bytes() if ended else 0
            yield Answer(text, tokens, seconds, speed, self.model_bytes, memory, ended)
            if ended:
                return


def resident_bytes() -> int:
    """Resident memory of this process: now on Linux; elsewhere its peak; 0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
