"""What both tabs of the playground do: take a question, show how its answer grows, stop it, and be ready again.

A question goes begin, write, over. The desk keeps what was asked when it began; `write` reads it there, not in what
the browser sends once its turn has come. `over` comes once, whatever became of it: answered, failed, or refused by
the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import gradio as gr

from razor.errors import RazorError
from razor.serve.answer import Messages
from razor.serve.desk import Desk
from razor.serve.parts import PRIVATE, SettingsPanel, as_toast, figures, note
from razor.serve.question import Question


class Tab:
    """A tab of the page.

    Args:
        desk: who answers.
    """

    id: ClassVar[str]

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    @classmethod
    def visitor(cls, request: gr.Request) -> str:
        """Who asks in this tab: a page of a browser, as it was loaded."""
        return f"{request.session_hash}/{cls.id}"

    @staticmethod
    def afterwards(written: Any, over: Callable[..., list[Any]], given: Any, shown: list[Any]) -> None:
        """Let `over` follow the event that writes: Gradio's page knows either a success or a failure of an event.

        `then` would not do: what follows that way waits for ever where the event failed, or never got into the
        queue.
        """
        for follow in (written.success, written.failure):
            follow(over, given, shown, queue=False, **PRIVATE)

    def ask(
        self,
        request: gr.Request,
        models: Sequence[str],
        message: str,
        values: Sequence[Any],
        before: Messages = (),
    ) -> None:
        """Take a question, or refuse it and say why.

        Args:
            request: whose.
            models: names of those that shall answer.
            message: the question.
            values: of the controls of a `SettingsPanel`.
            before: the conversation up to the question.
        """
        try:
            system, settings = SettingsPanel.read(values)
            self.desk.begin(self.visitor(request), Question(tuple(models), message, system, settings, before))
        except RazorError as error:
            raise as_toast(error) from error

    def taken(self, request: gr.Request) -> Question:
        """The question that is to be answered now."""
        try:
            return self.desk.take(self.visitor(request))
        except RazorError as error:
            raise as_toast(error) from error

    def growing(self, question: Question, model: str) -> Iterator[tuple[str, str]]:
        """Text of an answer so far, and what is said beneath it, from loading to the last figures.

        Raises:
            RazorError: see `Desk.answer`.
        """
        for engine, answer in self.desk.answer(question, model):
            if answer.tokens or answer.ended:
                yield answer.text, figures(answer, "" if engine is None else engine.runtime)
            else:
                yield "", note(f"loading {model} …" if engine is None else "reading …")

    def stop(self, request: gr.Request) -> None:
        """End what is being written, and what would come after it."""
        self.desk.stop(self.visitor(request))

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.desk.end(self.visitor(request))

    @staticmethod
    def last_words(question: Question | None) -> Any:
        """What is said beneath an answer in the end: as it is, or nothing where its turn never came."""
        return gr.skip() if question is not None and question.taken else note("")

    @staticmethod
    def keys(running: bool) -> list[Any]:
        """The keys that ask, stop and clear, while an answer is written or not."""
        return [
            gr.Button(visible=not running),
            gr.Button(visible=running),
            gr.Button(interactive=not running),
        ]
