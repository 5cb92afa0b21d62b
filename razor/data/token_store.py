"""Tokenized text on disk: documents that are read one at a time, by their place.

A folder holds numbered shards, whole or not there (`checked.py`), of some millions of tokens each:

| array | holds |
|---|---|
| `tokens` | all documents end to end, in 16 bits where the vocabulary allows it |
| `response` | a bit a token: whether it is to be predicted |
| `offsets` | where each document begins, and where the last one ends |

`token_store_write.py` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor.data.checked import Facts, shard_path
from razor.data.document import Document
from razor.data.tensor_files import TensorFiles

SHARD_TOKENS = 1 << 23
"""Tokens from which a shard is full."""


class TokenStore:
    """A finished store.

    Args:
        folder: its place.
        notes: of its shards, checked.
    """

    def __init__(self, folder: Path, notes: Sequence[Facts]) -> None:
        self.folder = folder
        self.tokens = [int(note["tokens"]) for note in notes]
        self.documents = [int(note["documents"]) for note in notes]
        self.sums = [str(note["sha256"]) for note in notes]
        self._files = TensorFiles(partial(shard_path, folder))

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.tokens)

    def lengths(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of a whole shard: where documents begin and end [documents + 1], and the response mask [tokens]."""
        offsets = self._files.read(shard, "offsets").astype(np.int64)
        bits = np.unpackbits(self._files.read(shard, "response"), count=self.tokens[shard])
        return offsets, bits.view(np.bool_)

    def all_tokens(self, shard: int) -> NDArray[Any]:
        """The tokens of a whole shard."""
        return self._files.read(shard, "tokens")

    def document(self, shard: int, start: int, size: int) -> Document:
        """A document, or a piece of one: `size` tokens from place `start` of a shard."""
        tokens = self._files.read(shard, "tokens", start, start + size)
        first, last = start // 8, -(-(start + size) // 8)
        bits = np.unpackbits(self._files.read(shard, "response", first, last))
        return Document(tokens, bits[start - 8 * first :][:size].view(np.bool_))

    def close(self) -> None:
        """Close its files until something is read again."""
        self._files.close()
