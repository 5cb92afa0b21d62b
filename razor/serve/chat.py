"""Talk to a model in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from razor.errors import RazorError
from razor.serve.answer import Answer, Settings, conversation, said
from razor.serve.engine import Engine


@dataclass
class Chat:
    """A conversation; text appears as it is written.

    Args:
        engine: who answers.
        settings: how answers are drawn.
        system: what the model is told before the first message.
        show: gets the pieces of text.
    """

    engine: Engine
    settings: Settings = field(default_factory=Settings)
    system: str | None = None
    show: Callable[[str], None] = lambda text: print(text, end="", flush=True)
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, message: str) -> Answer:
        """Answer one message; the conversation goes on from there, also after Ctrl-C.

        What is shown is part of the conversation by then. A message that got no text is not: the model would read
        two questions in a row.

        Raises:
            RazorError: the conversation has become longer than the model reads; the message is taken back.
            KeyboardInterrupt: passed on, with what was said by then in `messages`.
        """
        asked = [*self.messages, said("user", message)]
        answer = Answer()
        try:
            with closing(self.engine.answer(conversation(self.system, asked), self.settings)) as growing:
                for now in growing:
                    new, answer = now.text[len(answer.text) :], now
                    if answer.text:
                        self.messages = [*asked, said("assistant", answer.text)]
                    self.show(new)
        finally:
            self.show("\n")
        return answer

    def loop(self) -> None:
        """Read messages until an empty line, /quit or the end of input; /new starts over, Ctrl-C ends an answer."""
        self.show(
            f"{self.engine.name}, {self.engine.runtime}. /new starts over, an empty line or /quit leaves.\n"
        )
        while True:
            try:
                message = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                break
            if message in ("", "/quit"):
                break
            if message == "/new":
                self.messages.clear()
                continue
            try:
                self.show(f"[{', '.join(self.answer(message).figures())}]\n")
            except KeyboardInterrupt:
                self.show("[stopped]\n")
            except RazorError as error:
                self.show(f"{error} (/new)\n")
