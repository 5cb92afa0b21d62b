"""What happens behind the playground's page: which models are open, who is being answered, who asked to stop.

Nothing here knows the browser or Gradio. At most two models are open at a time, as many as are compared; the one
that was not used for longest makes room. The page lets one answer be written at a time, so that the figures of two
models are comparable and a model is never closed under a writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from razor.errors import RazorError
from razor.serve.engine import Answer, Engine, Messages, Settings
from razor.serve.found import Found, find_models

OPEN_MODELS = 2


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Args:
        max_prompt: characters of a message, and of the system prompt.
        max_new_tokens: tokens of an answer.
        queue: how many may wait.

    Raises:
        RazorError: a number below 1.
    """

    max_prompt: int = 4000
    max_new_tokens: int = 1024
    queue: int = 8

    def __post_init__(self) -> None:
        for key in ("max_prompt", "max_new_tokens", "queue"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RazorError(f"{key}='{value}' must be a whole number, at least 1.")

    def check(self, message: str, system: str, settings: Settings) -> None:
        """Check a question, whatever the page let through.

        Raises:
            RazorError: it is empty, or something is over its limit.
        """
        if not message.strip():
            raise RazorError("There is nothing to answer: write a message.")
        for what, text in (("message", message), ("system prompt", system)):
            if len(text) > self.max_prompt:
                raise RazorError(f"The {what} has {len(text):,} characters; {self.max_prompt:,} are allowed.")
        if settings.max_new_tokens > self.max_new_tokens:
            raise RazorError(f"At most {self.max_new_tokens} new tokens can be asked for.")


class Desk:
    """Models of a folder, opened when somebody asks them.

    Args:
        folder: searched for models.
        limits: of every question.
        load: opens what was found.

    Raises:
        RazorError: the folder holds no model.
    """

    def __init__(self, folder: Path, limits: Limits, load: Callable[[Found], Engine]) -> None:
        self.folder, self.limits = folder, limits
        self._load = load
        self._open: dict[str, Engine] = {}
        self._stops: dict[str, threading.Event] = {}
        self._turn = threading.Lock()
        if not self.models():
            raise RazorError(
                f"folder='{folder}' holds no model to talk to (a packed folder, a dense export, a GGUF file)."
            )

    def models(self) -> Mapping[str, Found]:
        """What lies in the folder now, by name."""
        return {found.name: found for found in find_models(self.folder)}

    def engine(self, name: str) -> Engine:
        """The model of a name, opened if it is not.

        Raises:
            RazorError: it is gone, damaged, or cannot be run here.
        """
        with self._turn:
            if name in self._open:
                self._open[name] = self._open.pop(name)  # the last used comes last
                return self._open[name]
            found = self.models().get(name)
            if found is None:
                raise RazorError(
                    f"The model '{name}' is not in '{self.folder}' any more: load the page again."
                )
            while len(self._open) >= OPEN_MODELS:
                self._open.pop(next(iter(self._open))).close()
            self._open[name] = self._load(found)
            return self._open[name]

    def begin(self, visitor: str, message: str, system: str, settings: Settings) -> None:
        """Take a question; from now on the visitor can stop it.

        Raises:
            RazorError: see `Limits.check`.
        """
        self.limits.check(message, system, settings)
        self._stops[visitor] = threading.Event()

    def stop(self, visitor: str) -> None:
        """End what is being written, or waits to be, for a visitor."""
        if visitor in self._stops:
            self._stops[visitor].set()

    def end(self, visitor: str) -> None:
        """The visitor's question is over."""
        self._stops.pop(visitor, None)

    def answer(self, visitor: str, name: str, messages: Messages, settings: Settings) -> Iterator[Answer]:
        """The answer of a model to a conversation as it grows.

        Raises:
            RazorError: see `engine` and `Engine.answer`.
        """
        stop = self._stops.get(visitor) or threading.Event()
        if stop.is_set():
            yield Answer(ended="stopped")
            return
        engine = self.engine(name)
        yield from engine.answer(messages, settings, stop)

    def close(self) -> None:
        """Stop everything and close every model."""
        for stop in list(self._stops.values()):
            stop.set()
        with self._turn:
            while self._open:
                self._open.popitem()[1].close()


def conversation(system: str, messages: Messages) -> list[dict[str, str]]:
    """Messages with what the model is told first in front, if anything."""
    return [*([{"role": "system", "content": system}] if system.strip() else []), *messages]
