"""Which of the texts a teacher wrote are worth learning from, and how many were not, by reason.

| left out | because |
|---|---|
| blank or circling | a turn says nothing, or half of its runs of four tokens repeat earlier ones |
| repeated | all tokens equal those of an earlier text |
| nearly repeated | the text shares most of its runs of five tokens with an earlier one (`near_duplicates.py`) |
| too short | the response has fewer tokens than asked for |

The first kind never reaches a shard. The others are taken out when shards are read: the same shards serve every
setting of the filters, and settings can be tried without writing anything again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from razor.data.document import Document
from razor.data.near_duplicates import NearDuplicates
from razor.data.sampling import Text

UNUSABLE = "blank or circling"


class Filters:
    """Takes texts one after the other and counts what it refuses.

    Args:
        min_tokens: fewest tokens of a response.
        near_duplicates: likeness, above 0 and at most 1, from which a text repeats an earlier one; None: only
            equal texts do.
        given: runs of tokens that all texts share, a chat template's, which make nothing alike.

    Attributes:
        left_out: number of refused texts by reason.
    """

    def __init__(
        self, min_tokens: int = 1, near_duplicates: float | None = None, given: Iterable[Sequence[int]] = ()
    ) -> None:
        self.min_tokens = min_tokens
        self.left_out: Counter[str] = Counter()
        self._seen: set[bytes] = set()
        self._near = None if near_duplicates is None else NearDuplicates(near_duplicates, given)

    def take(self, document: Document) -> bool:
        """Whether a text is to be learned from."""
        reason = self._reason(document)
        if reason:
            self.left_out[reason] += 1
        return not reason

    def _reason(self, document: Document) -> str:
        if document.key() in self._seen:
            return "repeated"
        self._seen.add(document.key())
        if document.targets < self.min_tokens:
            return "too short"
        if self._near is not None and self._near.repeats(document.tokens.tolist()):
            return "nearly repeated"
        return ""

    def __str__(self) -> str:
        """Such as "8 blank or circling, 3 repeated"; empty if nothing was left out."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)


def usable(text: Text, tokenizer: Any) -> bool:
    """False if a turn is blank, or circles: half of its runs of four tokens repeat earlier ones."""
    for first, last in text.spans:
        tokens = text.tokens[first:last]
        if not tokenizer.decode(tokens, skip_special_tokens=True).strip():
            return False
        runs = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
        if len(runs) >= 16 and 2 * len(set(runs)) < len(runs):
            return False
    return True
