"""A temperature that changes while a text is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from razor.errors import RazorError

WHERE = "data.source.temperature"


@dataclass(frozen=True)
class Ramp:
    """A temperature that goes evenly from `start` to `end` over the first `tokens` tokens of a turn.

    Begin hot and end cool: how a turn begins decides what it is about, and that should vary; how it goes on should
    make sense (LLM-QAT, arXiv 2305.17888, treats first tokens apart as well). It is over the tokens of a turn and
    not over the shards of a text, because how many shards there will be is not known when the first is written,
    and shard k has to be the same however many follow.
    """

    start: float
    end: float
    tokens: int

    def at(self, place: int) -> float:
        """Temperature of token number `place` of a turn."""
        return self.start + (self.end - self.start) * min(1.0, place / self.tokens)


def read_temperature(given: object) -> float | Ramp:
    """The temperature a person gave: a number, or {"from": 1.2, "to": 0.8, "tokens": 32}.

    Raises:
        RazorError: neither, or one of the numbers is not above 0.
    """
    if not isinstance(given, Mapping):
        return _number(given, WHERE)
    if set(given) != {"from", "to", "tokens"}:
        raise RazorError(
            f"{WHERE} has the keys {sorted(map(str, given))}: it takes a number, or "
            "{from: 1.2, to: 0.8, tokens: 32}."
        )
    tokens = given["tokens"]
    if type(tokens) is not int or tokens < 1:
        raise RazorError(f"{WHERE}.tokens={tokens} must be a whole number, at least 1.")
    start, end = (_number(given[key], f"{WHERE}.{key}") for key in ("from", "to"))
    return Ramp(start, end, tokens)


def _number(given: object, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not given > 0:
        raise RazorError(f"{where}={given} must be a number above 0: without chance all texts are the same.")
    return given
