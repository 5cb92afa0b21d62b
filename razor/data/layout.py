"""Which piece of which document lies in which row, for text that stays on disk.

A layout is decided from lengths alone, a shard of tokens at a time, and kept on disk too: rows of a shard hold
documents of that shard (best-fit decreasing, as in memory; millions of tokens are enough to fill rows well). So
neither making nor reading one takes memory that grows with the text. It lies under `<cache>/layouts/<hash>`; the
hash covers the tokens, their shares, the length of rows, the held-out choice and the seed.

| array of a shard | holds |
|---|---|
| `starts`, `sizes` | place and length of each piece in its shard of tokens, in the order of the rows |
| `rows` | which piece begins each row, and where the last row ends |
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from razor.data.checked import Facts, shard_path
from razor.data.document import Document
from razor.data.packing import StoredRows
from razor.data.tensor_files import TensorFiles
from razor.data.token_store import TokenStore


class Layout(StoredRows):
    """Row i as the range of its pieces; `pieces` gives these as documents.

    Args:
        folder: its place.
        stores: what it was made of.
        notes: of its shards: "part" and "shard" of the tokens, "rows", "pieces", "tokens", "targets".
    """

    def __init__(self, folder: Path, stores: Sequence[TokenStore], notes: Sequence[Facts]) -> None:
        self.digest = folder.name  # a hash of the tokens' checksums and of how they were laid out
        self.stores = list(stores)
        self.of = [(note["part"], note["shard"]) for note in notes]
        self.row_ends = list(accumulate(note["rows"] for note in notes))
        self.piece_ends = list(accumulate(note["pieces"] for note in notes))
        self.tokens = sum(note["tokens"] for note in notes)
        self.targets = sum(note["targets"] for note in notes)
        self._files = TensorFiles(partial(shard_path, folder))

    def __len__(self) -> int:
        return self.row_ends[-1] if self.row_ends else 0

    def __getitem__(self, row: int) -> Sequence[int]:  # type: ignore[override]
        """The pieces of a row."""
        number, place = _place(self.row_ends, row)
        begin, end = self._files.read(number, "rows", place, place + 2).tolist()
        base = self.piece_ends[number - 1] if number else 0
        return range(base + begin, base + end)

    def document(self, piece: int) -> Document:
        """A piece, read."""
        number, place = _place(self.piece_ends, piece)
        start, size = (
            int(self._files.read(number, name, place, place + 1)[0]) for name in ("starts", "sizes")
        )
        part, shard = self.of[number]
        return self.stores[part].document(shard, start, size)

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        found = [np.zeros(0, dtype=np.int32)]
        for number in range(len(self.of)):
            ends = np.concatenate([[0], np.cumsum(self._files.read(number, "sizes"), dtype=np.int64)])
            found.append(np.diff(ends[self._files.read(number, "rows")]).astype(np.int32))
        return np.concatenate(found)

    @property
    def pieces(self) -> Sequence[Document]:
        """All pieces, each read when it is asked for."""
        return _Pieces(self)


class _Pieces(Sequence[Document]):
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __len__(self) -> int:
        return self.layout.piece_ends[-1] if self.layout.piece_ends else 0

    def __getitem__(self, piece: int) -> Document:  # type: ignore[override]
        return self.layout.document(piece)


def _place(ends: list[int], index: int) -> tuple[int, int]:
    """(shard, place in it) of something of which so many lie in each."""
    if not 0 <= index < (ends[-1] if ends else 0):
        raise IndexError(f"{index} of {ends[-1] if ends else 0}")
    number = bisect_right(ends, index)
    return number, index - (ends[number - 1] if number else 0)
