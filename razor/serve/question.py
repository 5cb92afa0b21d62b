"""What a visitor of the playground asks, as it was when it was asked, and how much they may ask for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from razor.errors import RazorError
from razor.serve.answer import Messages, Settings


@dataclass
class Question:
    """What a visitor asked, as it was when it was checked.

    Attributes:
        models: that shall answer, by name.
        message: the question.
        system: what they are told first; may be empty.
        before: the conversation up to the question.
        settings: how answers are drawn.
        stop: set when no more is wanted.
        taken: it is being answered, and will not be again.
        answered: there is text of an answer.
    """

    models: tuple[str, ...]
    message: str
    system: str = ""
    settings: Settings = field(default_factory=Settings)
    before: Messages = ()
    stop: threading.Event = field(default_factory=threading.Event)
    taken: bool = False
    answered: bool = False


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

    def check(self, question: Question) -> None:
        """Check a question, whatever the page let through.

        Raises:
            RazorError: it is empty, or something is over its limit.
        """
        if not question.message.strip():
            raise RazorError("There is nothing to answer: write a message.")
        for what, text in (("message", question.message), ("system prompt", question.system)):
            if len(text) > self.max_prompt:
                raise RazorError(f"The {what} has {len(text):,} characters; {self.max_prompt:,} are allowed.")
        if question.settings.max_new_tokens > self.max_new_tokens:
            raise RazorError(f"At most {self.max_new_tokens} new tokens can be asked for.")
