"""What happens behind the playground's page: which models are open, who is being answered, who asked to stop.

Nothing here knows the browser or Gradio. At most two models are open at a time, as many as are compared; the one
that was not used for longest makes room. A question is checked and kept when it is asked, and answered as it was
kept: what a browser sends afterwards, when its turn has come, is not looked at. The page lets one answer be written
at a time, so that the figures of two models are comparable. Who asks and never comes back takes one of `KEPT`
places for a while, and no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from razor.errors import RazorError
from razor.serve.answer import Answer, conversation, said
from razor.serve.engine import Engine, reason
from razor.serve.found import Found, find_models
from razor.serve.question import Limits, Question

OPEN_MODELS = 2

KEPT = 1000
"""Questions that are kept until they are over: far more than can wait, so that only what was left behind goes."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""See `Found.stamp`."""


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
        self._open: dict[str, tuple[Stamp, Engine]] = {}
        self._turn = threading.Lock()  # of whoever opens and closes models
        self._asked: dict[str, Question] = {}
        self._guard = threading.Lock()  # of `_asked` and `_closed`; never held for long
        self._closed = False
        if not self.models():
            raise RazorError(
                f"folder='{folder}' holds no model to talk to (a packed folder, a dense export, a GGUF file)."
            )

    def models(self) -> Mapping[str, Found]:
        """What lies in the folder now, by name."""
        return {found.name: found for found in find_models(self.folder)}

    def engine(self, name: str) -> Engine:
        """The model of a name, opened if it is not, and again if its files are others by now.

        Raises:
            RazorError: it is gone, damaged, or cannot be run here (whatever kind of error says so); everything has
                been closed.
        """
        with self._turn:
            if self._closed:
                raise RazorError("The playground is being closed.")
            found = self.models().get(name)
            stamp, engine = self._open.pop(name, ((), None))
            if engine is not None and found is not None and found.stamp() == stamp:
                self._open[name] = stamp, engine  # the last used comes last
                return engine
            if engine is not None:
                engine.close()
            if found is None:
                raise RazorError(
                    f"The model '{name}' is not in '{self.folder}' any more: load the page again."
                )
            while len(self._open) >= OPEN_MODELS:
                self._open.pop(next(iter(self._open)))[1].close()
            stamp = found.stamp()  # before it is read: what changes meanwhile is another model
            try:
                engine = self._load(found)
            except RazorError:
                raise
            except Exception as error:  # no memory, no right to read it: each library has its own
                raise RazorError(f"The model '{name}' cannot be loaded: {reason(error)}") from error
            self._open[name] = stamp, engine
            return engine

    def begin(self, visitor: str, question: Question) -> None:
        """Take a question; from now on the visitor can stop it. One that they asked before is stopped.

        Raises:
            RazorError: see `Limits.check`; everything has been closed.
        """
        self.limits.check(question)
        with self._guard:
            if self._closed:
                raise RazorError("The playground is being closed.")
            gone = [self._asked.pop(visitor, None)]
            while len(self._asked) >= KEPT:
                gone.append(self._asked.pop(self._longest_left()))
            self._asked[visitor] = question
        for before in gone:
            if before is not None:
                before.stop.set()

    def _longest_left(self) -> str:
        """Whose question was asked first and is not being answered; else whose was asked first."""
        waiting = (visitor for visitor, question in self._asked.items() if not question.taken)
        return next(waiting, next(iter(self._asked)))

    def take(self, visitor: str) -> Question:
        """The visitor's question, to be answered now.

        Raises:
            RazorError: there is none, or it is being answered already.
        """
        with self._guard:
            question = self._asked.get(visitor)
            if question is None or question.taken:
                raise RazorError("There is no question to answer: ask it again.")
            question.taken = True
            return question

    def stop(self, visitor: str) -> None:
        """End what is being written, or waits to be, for a visitor."""
        with self._guard:
            if visitor in self._asked:
                self._asked[visitor].stop.set()

    def end(self, visitor: str) -> Question | None:
        """The visitor's question is over, and wanted no more; what it was, if there was one."""
        with self._guard:
            question = self._asked.pop(visitor, None)
        if question is not None:
            question.stop.set()
        return question

    def answer(self, question: Question, name: str) -> Iterator[tuple[Engine | None, Answer]]:
        """The answer of a model to a question as it grows.

        Args:
            question: taken.
            name: of the model.

        Yields:
            Who answers, and the answer; nobody yet while the model is being loaded.

        Raises:
            RazorError: see `engine` and `Engine.answer`.
        """
        if question.stop.is_set():  # a model that nobody waits for is not loaded
            yield None, Answer(ended="stopped")
            return
        yield None, Answer()
        engine = self.engine(name)
        yield engine, Answer()
        asked = conversation(question.system, [*question.before, said("user", question.message)])
        for answer in engine.answer(asked, question.settings, question.stop):
            question.answered = question.answered or answer.text != ""
            yield engine, answer

    def close(self) -> None:
        """Stop everything and close every model; a model that is being loaded is waited for."""
        with self._guard:
            self._closed = True
            for question in self._asked.values():
                question.stop.set()
        with self._turn:
            while self._open:
                self._open.popitem()[1][1].close()
