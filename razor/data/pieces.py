"""Documents of a shard as pieces that fit into rows: where each begins, and how long it is.

The same as `packing.fit` does to documents in memory, from lengths and the response mask alone: text is cut into
pieces that share a token, a chat loses its end, and what has nothing to learn is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor.data.document import Document


@dataclass(frozen=True)
class Pieces:
    """Pieces of the documents of one shard, in order.

    Attributes:
        starts: place of the first token in the shard.
        sizes: tokens.
        targets: tokens that carry a loss; at least one.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: Any) -> Pieces:
        """Some of them, by a mask or by indices."""
        return Pieces(self.starts[which], self.sizes[which], self.targets[which])

    @property
    def tokens(self) -> int:
        """Of all pieces."""
        return int(self.sizes.sum())


@dataclass
class Lost:
    """What cutting left out so far."""

    documents: int = 0
    truncated: int = 0
    useless: int = 0


def cut(offsets: NDArray[np.int64], response: NDArray[np.bool_], length: int, lost: Lost) -> Pieces:
    """Pieces of at most `length` tokens; what is lost is added to `lost`.

    Args:
        offsets: [documents + 1] where documents begin, none of them empty.
        response: [tokens] see `Document`.
        length: of a row.
        lost: counts.
    """
    before = np.concatenate([[0], np.cumsum(response, dtype=np.int64)])  # responses in front of a place
    sizes = np.diff(offsets)
    learned = before[offsets[1:]] - before[offsets[:-1] + 1]  # the first token of a document is never learned
    long, text = sizes > length, learned == sizes - 1
    counts = np.where(long & text, -(-(sizes - 1) // (length - 1)), 1)
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[:-1][document] + number * (length - 1)
    sizes = np.minimum(length, sizes[document] - number * (length - 1))
    pieces = Pieces(starts, sizes, before[starts + sizes] - before[starts + 1])
    useful = pieces[pieces.targets > 0]
    lost.documents += len(counts)
    lost.truncated += int((long & ~text).sum())
    lost.useless += len(pieces) - len(useful)
    return useful


class Secrets:
    """Finds copies of held-out documents.

    Args:
        documents: held out.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._keys = {document.key() for document in documents}
        ends = [(len(d), d.tokens[0], d.tokens[len(d) // 2], d.tokens[-1]) for d in documents]
        self._codes = _codes(*np.array(ends, dtype=np.uint64).reshape(-1, 4).T)

    def others(self, pieces: Pieces, tokens: NDArray[Any]) -> Pieces:
        """The pieces that are no copies; `tokens` are those of their shard."""
        if not self._keys or not len(pieces):
            return pieces
        places = (pieces.starts, pieces.starts + pieces.sizes // 2, pieces.starts + pieces.sizes - 1)
        codes = _codes(pieces.sizes.astype(np.uint64), *(tokens[at].astype(np.uint64) for at in places))
        keep = np.ones(len(pieces), dtype=np.bool_)
        for which in np.flatnonzero(np.isin(codes, self._codes)):  # few are alike in length and three tokens
            start, size = pieces.starts[which], pieces.sizes[which]
            keep[which] = tokens[start : start + size].astype(np.int32).tobytes() not in self._keys
        return pieces[keep]


def _codes(*parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number for each tuple of numbers; equal tuples have equal ones."""
    codes = np.zeros_like(parts[0])
    for part in parts:
        codes = codes * np.uint64(6364136223846793005) + part
    return codes
