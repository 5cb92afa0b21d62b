"""A conversation and its answer: what is asked, how it shall be drawn, what has come so far, and its figures.

first                seconds from the question to the first token: reading the prompt, and the first step
tokens_per_second    (tokens - 1) / (time of the last token - time of the first): the speed of writing alone
model_bytes          bytes of the model's weights as the runtime holds them (packed codes stay packed)
process_bytes        resident memory of the whole process at that moment: Python, runtimes, every loaded model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from razor.errors import RazorError

Messages = Sequence[dict[str, str]]
"""A conversation: role (system, user, assistant) and content of each message."""

LIMITS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1 << 20),
    "temperature": (0, 100),
    "top_p": (0.01, 1),
    "seed": (0, 2**31 - 1),
}

COOLEST = 0.01
"""The lowest temperature above 0: numbers divided by less overflow, and there is no chance left in them anyway."""

ENDS = {"length": "length limit", "stopped": "stopped"}
"""Words for an end that was not the model's own."""


@dataclass(frozen=True)
class Settings:
    """How an answer is drawn.

    Args:
        max_new_tokens: length limit of an answer, tokens.
        temperature: 0 takes the likeliest token each time; else at least `COOLEST`.
        top_p: nucleus of the distribution to sample from.
        seed: of the sampling. The same question gets the same answer as far as the runtime computes the same
            numbers: a chance that falls on the edge between two tokens may fall to the other side where they are
            rounded in another order, as llama.cpp does where it still knows the beginning of a conversation.
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
        if 0 < self.temperature < COOLEST:
            raise RazorError(
                f"temperature='{self.temperature}' must be 0 (the likeliest token each time) or at least {COOLEST}."
            )


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

    def figures(self) -> list[str]:
        """The figures in words for people, those that are known; the terminal and the page show the same."""
        parts = []
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        if self.first is not None:
            parts.append(f"{self.first:.2f} s to first token")
        parts.append(f"{self.tokens} token{'s' * (self.tokens != 1)}")
        if self.model_bytes:
            parts.append(f"model {self.model_bytes / 1e6:.1f} MB")
        if self.process_bytes:
            parts.append(f"process {self.process_bytes / 1e6:.0f} MB")
        return [*parts, *(word for word in (ENDS.get(self.ended),) if word)]


def conversation(system: str | None, messages: Messages) -> list[dict[str, str]]:
    """Messages with what the model is told first in front, if anything."""
    return [*([said("system", system)] if system and system.strip() else []), *messages]


def said(role: str, content: str) -> dict[str, str]:
    """A message of a conversation."""
    return {"role": role, "content": content}
