"""Several kinds of text from one teacher, in given shares.

| kind | the teacher is given | it writes |
|---|---|---|
| `chat` | the template up to where a user speaks | the user's turn and the answer |
| `text` | BOS (or a common token), or the first tokens of a passage of yours | how the text goes on |
| `file` | a prompt of yours, in the template if there is one | the answer |

**Shares** are of texts, and exact without a generator: text number n takes the kind in whose share of the unit
interval the fractional part of n times the golden ratio falls. These numbers fill the interval evenly from any n
on, so the shares hold in every shard, and text n is the same whatever came before it. (Shares of tokens would
depend on what the teacher makes of them.) Prompts of a file are taken in order, each once before the first comes
again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from razor.data.sampling import Text
from razor.data.turns import Turns
from razor.errors import RazorError, did_you_mean
from razor.storage import digest

KINDS = ("chat", "text", "file")

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Mix:
    """Kinds of text by their shares; to `TeacherMade` the same as one `Turns`.

    Attributes:
        shares: of texts, by kind; they sum to one.
        turns: what each kind is given and writes.
    """

    shares: Mapping[str, float]
    turns: Mapping[str, Turns]

    @property
    def longest(self) -> int:
        """Most tokens a text can get."""
        return max(turns.longest for turns in self.turns.values())

    @property
    def given(self) -> list[tuple[int, ...]]:
        """Runs of tokens that every text of a kind shares."""
        return [run for turns in self.turns.values() for run in turns.given]

    def texts(self, count: int, generator: torch.Generator, first: int) -> list[Text]:
        """Texts number `first`, `first + 1`, ... ready to be written."""
        kinds = self.kinds(first + count)
        used = kinds[:first].count("file")
        texts: list[Text] = []
        for kind in kinds[first:]:
            turns = self.turns[kind]
            if kind == "file":
                texts.append(Text(turns.starts[used % len(turns.starts)], turns.script))
                used += 1
            else:
                texts.extend(turns.texts(1, generator))
        return texts

    def describe(self) -> dict[str, Any]:
        """Everything that shapes the text, JSON-able; files of any length as a hash."""
        return {kind: [share, digest(self.turns[kind].describe())] for kind, share in self.shares.items()}

    def kinds(self, count: int) -> list[str]:
        """The kinds of the first `count` texts."""
        names, edges = list(self.shares), list(accumulate(self.shares.values()))[:-1]
        return [names[bisect_right(edges, number * GOLDEN % 1)] for number in range(count)]


def shares_of(mix: Any) -> dict[str, float]:
    """The shares a person gave, in the order of `KINDS` and summing to one; kinds of share 0 left out.

    Raises:
        RazorError: not a mapping of known kinds to numbers, one below 0, or all 0.
    """
    if not isinstance(mix, Mapping):
        raise RazorError(f"data.source.mix={mix!r} must give shares, such as {{chat: 0.7, text: 0.3}}.")
    for kind, share in mix.items():
        if kind not in KINDS:
            raise RazorError(
                f"data.source.mix has the unknown kind '{kind}'.{did_you_mean(str(kind), KINDS)}"
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < float("inf"):
            raise RazorError(f"data.source.mix.{kind}={share} must be a number, 0 or more.")
    total = sum(mix.values())
    if not total > 0:
        raise RazorError(f"data.source.mix={dict(mix)} gives no kind a share above 0.")
    return {kind: mix[kind] / total for kind in KINDS if mix.get(kind)}
