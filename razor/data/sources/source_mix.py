"""Several sources in given shares of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from razor.data.document import Document
from razor.data.sources.base import Teacher, TextSource
from razor.errors import RazorError, did_you_mean

WHEN_SHORT = ("repeat", "error")


@dataclass(frozen=True)
class MixPart:
    """One source of a mix: its name, and its share in any unit, or None."""

    name: str
    source: TextSource
    weight: float | None


class SourceMix(TextSource):
    """Parts by weight: shares of the tokens trained on, exact to within one document.

    Args:
        parts: name -> {"source": a source, "weight": its share in any unit}. With weight None for all, every part
            is taken whole, once.
        tokens: of one pass through the mix. None: as many as need no part to be repeated; then one part is used
            whole and of the others as much as fits to it.
        when_short: what to do with a part that has fewer tokens than `tokens` asks of it: "repeat" it, or "error".

    Raises:
        RazorError: no parts, or options that are not of these forms.
    """

    def __init__(
        self, parts: Mapping[str, Mapping[str, Any]], tokens: int | None = None, when_short: str = "error"
    ) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise RazorError("data.source.parts is empty: it needs at least one {source, weight} by name.")
        self.parts = [_part(name, given) for name, given in parts.items()]
        given = {part.weight is None for part in self.parts}
        if len(given) == 2:
            raise RazorError(
                "data.source.parts: give every part a weight, or none of them (then all are taken whole)."
            )
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise RazorError(f"data.source.tokens={tokens} must be a whole number, at least 1, or null.")
        if tokens is not None and given == {True}:
            raise RazorError("data.source.tokens is shared out by weight: give every part one.")
        if when_short not in WHEN_SHORT:
            raise RazorError(
                f"data.source.when_short='{when_short}'.{did_you_mean(str(when_short), WHEN_SHORT)}"
            )
        self.tokens = tokens
        self.when_short = when_short
        known = [part.source.benchmarks for part in self.parts if part.source.benchmarks is not None]
        self.benchmarks = list(dict.fromkeys(task for tasks in known for task in tasks)) if known else None

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """All documents of all parts, each once; weights are for `Corpus.build`, which knows rows."""
        return [document for part in self.parts for document in part.source.documents(tokenizer, teacher)]

    def wanted(self, available: Sequence[int]) -> list[int]:
        """Tokens to take of each part.

        Args:
            available: tokens there are of each.

        Raises:
            RazorError: a part has too few, and is not to be repeated.
        """
        weights = [part.weight for part in self.parts]
        if weights[0] is None:
            return list(available)
        total = sum(weight or 0 for weight in weights)
        shares = [(weight or 0) / total for weight in weights]
        for part, share, there in zip(self.parts, shares, available, strict=True):
            if share and not there:
                raise RazorError(f"The part '{part.name}' of the mix has nothing to train on.")
        whole = min(there / share for there, share in zip(available, shares, strict=True) if share)
        tokens = self.tokens or whole
        wanted = [round(tokens * share) for share in shares]
        if self.tokens and self.when_short == "error":
            for part, count, there in zip(self.parts, wanted, available, strict=True):
                if count > there:
                    raise RazorError(
                        f"The part '{part.name}' of the mix has {there:,} tokens, but data.source.tokens="
                        f"{self.tokens} asks {count:,} of it: lower that (null: no part is short), change its "
                        "weight, or repeat it with data.source.when_short=repeat."
                    )
        return wanted if self.tokens else [min(pair) for pair in zip(wanted, available, strict=True)]

    def describe(self) -> list[Any]:
        """All that `wanted` depends on, JSON-able."""
        return [[[part.name, part.weight] for part in self.parts], self.tokens, self.when_short]

    def tell(self, used: Sequence[int], available: Sequence[int]) -> str:
        """One line: exact shares, tokens, and how often each part is gone through."""
        texts = [
            f"{part.name} {count / max(sum(used), 1):.2%} ({count:,} tokens, {count / max(there, 1):.2f} of it)"
            for part, count, there in zip(self.parts, used, available, strict=True)
        ]
        return f"Mix of {sum(used):,} tokens: {'; '.join(texts)}."


def _part(name: str, given: Any) -> MixPart:
    if not isinstance(given, Mapping) or not isinstance(given.get("source"), TextSource):
        raise RazorError(f"data.source.parts.{name} must be {{source, weight}}: see conf/data/mix.yaml.")
    if unknown := sorted(set(given) - {"source", "weight"}):
        choices = did_you_mean(str(unknown[0]), ("source", "weight"))
        raise RazorError(f"data.source.parts.{name} has the unknown key '{unknown[0]}'.{choices}")
    if isinstance(given["source"], SourceMix):
        raise RazorError(f"data.source.parts.{name} is a mix itself: put its parts in its place.")
    weight = given.get("weight")
    numbers = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if weight is not None and not (numbers and 0 < weight < float("inf")):
        raise RazorError(f"data.source.parts.{name}.weight={weight} must be a number above 0, or null.")
    return MixPart(str(name), given["source"], weight)
