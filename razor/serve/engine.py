"""What answers in a chat: one interface over the runtimes.

An engine holds one loaded model and gives one answer at a time. A thread of its own writes; whoever asked is handed
the answer as it grows and may stop it between two tokens, under llama.cpp also between two batches of a prompt that
is still being read (Transformers reads a prompt in one go). Any thread may close a model: its writer is stopped,
and has left it, before the memory goes; the next answer waits for it as well. The figures of an answer
(`razor.serve.answer`) are taken with one clock for all runtimes, where a token leaves the model.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import ClassVar

from razor.errors import RazorError
from razor.serve.answer import Answer, Messages, Settings


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
        self._guard = threading.Lock()  # of the two below; never held for long
        self._closed = False
        self._writer: tuple[threading.Thread, Writing] | None = None

    @abstractmethod
    def _write(self, messages: Messages, settings: Settings, writing: Writing) -> str:
        """Write an answer, handing over every token (in the thread of its own); why it ended: `end` or `length`."""

    def _interrupt(self) -> None:  # noqa: B027 - most runtimes look at `writing.over` by themselves
        """Wake a `_write` that waits for something; called until it ends."""

    @abstractmethod
    def _free(self) -> None:
        """Give the memory back; nobody writes any more."""

    def close(self) -> None:
        """Stop the answer that is being written, wait until its writer has left the model, give the memory back.

        Whoever reads that answer sees it stopped; whoever waits for a turn gets an error.
        """
        with self._guard:
            if self._closed:
                return
            self._closed, writer = True, self._writer
        if writer is not None:
            self._end(*writer)
        self._free()

    def answer(
        self, messages: Messages, settings: Settings, stop: threading.Event | None = None
    ) -> Generator[Answer, None, None]:
        """The answer to a conversation, each time it has grown; the last one is whole and says why it ended.

        Closing the iterator stops it too. Stop is heard also while others are answered.

        Raises:
            RazorError: the conversation is longer than the model reads, the runtime refuses or fails (no memory,
                numbers that are none), the model was closed.
        """
        writing = Writing(stop or threading.Event())
        if not self._take_turn(writing):
            yield Answer(model_bytes=self.model_bytes, ended="stopped")
            return
        try:
            yield from self._answer(messages, settings, writing)
        finally:
            self._turn.release()

    def _take_turn(self, writing: Writing) -> bool:
        """Wait until nobody else is answered; False where the asker wants nothing any more."""
        while not writing.over:
            self._check_open()
            if self._turn.acquire(timeout=0.05):
                if self._nobody_writes():
                    return True
                self._turn.release()
        return False

    def _nobody_writes(self) -> bool:
        """Whether the last writer has left the model, who is told to; asked by whose turn it is.

        Who asked before may have gone without waiting: a second Ctrl-C ends that wait too.
        """
        with self._guard:
            writer = self._writer
        if writer is not None and writer[0].is_alive():
            writer[1].left.set()
            self._interrupt()
            writer[0].join(0.05)
        return writer is None or not writer[0].is_alive()

    def _answer(self, messages: Messages, settings: Settings, writing: Writing) -> Iterator[Answer]:
        start = time.perf_counter()
        thread = threading.Thread(target=self._thread, args=(messages, settings, writing), daemon=True)
        with self._guard:
            self._check_open()
            self._writer = (thread, writing)
            thread.start()
        try:
            yield from self._growing(writing, start)
        finally:
            self._end(thread, writing)

    def _check_open(self) -> None:
        if self._closed:
            raise RazorError(f"'{self.name}' was closed.")

    def _end(self, thread: threading.Thread, writing: Writing) -> None:
        """Make a writer stop, and wait until it has."""
        writing.left.set()
        while thread.is_alive():
            self._interrupt()
            thread.join(0.02)

    def _thread(self, messages: Messages, settings: Settings, writing: Writing) -> None:
        try:
            ended = self._write(messages, settings, writing)
            writing.pieces.put("stopped" if writing.over else ended)
        except RazorError as error:  # told in the thread that asked
            writing.pieces.put(error)
        except BaseException as error:  # of the runtime, which has many kinds
            told = RazorError(f"'{self.name}' cannot answer: {reason(error)}")
            told.__cause__ = error
            writing.pieces.put(told)

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


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


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
