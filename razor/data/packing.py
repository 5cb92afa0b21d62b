"""Documents of many lengths -> rows of one length, without waste and without mixing.

Padding every document to the longest wastes most of a batch, so documents are packed: several share
a row. Three things keep them apart. `position_ids` restart at 0 with each document (Transformers
reads document borders from that and masks attention across them), `documents` says whose a token
is, and the last token of a document predicts nothing, because what follows it belongs to another.

**Labels are shifted here and nowhere else**: `labels[t]` is the token that position t has to
predict.

Rows are filled best-fit decreasing: the longest document first, each into the fullest row that
still takes it. The order among equally long documents comes from the seed, so the same documents
and seed give the same rows everywhere.

**Unpacked** (`data.pack=false`), a row holds one document and is as long as that; rows that come together are
filled up to the longest of them. With `data.order=bucketed` (`steps.py`) these are of similar length, so that
little is filled up.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from razor.data.document import Document
from razor.distill import IGNORE, Batch, Targets
from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.data.teacher_cache import TeacherCache

logger = logging.getLogger(__name__)


def fit(documents: Sequence[Document], sequence_length: int) -> list[Document]:
    """Make every document at most `sequence_length` tokens long; leave out those without a loss.

    Text is cut into pieces that share one token with the piece before, so that each of its tokens
    is still predicted exactly once. A chat or a pair is truncated at the right; how many were is
    logged in one line.
    """
    check_length(sequence_length)
    fitted: list[Document] = []
    truncated = 0
    for document in documents:
        if len(document) <= sequence_length:
            fitted.append(document)
        elif document.is_text:
            fitted.extend(_pieces(document, sequence_length))
        else:
            truncated += 1
            fitted.append(_slice(document, 0, sequence_length))
    useful = [document for document in fitted if document.targets]
    say_cut(truncated, len(documents), sequence_length, len(fitted) - len(useful))
    return useful


def say_cut(truncated: int, documents: int, sequence_length: int, useless: int) -> None:
    """One line about documents that lost their end or were left out, if there are any."""
    if truncated or useless:
        logger.warning(
            "%d of %d documents were longer than %d tokens and lost their end; %d without a token "
            "to learn left out.",
            truncated,
            documents,
            sequence_length,
            useless,
        )


def check_length(sequence_length: int) -> None:
    """Raise RazorError unless a row can hold at least one prediction."""
    if sequence_length < 2:
        raise RazorError(f"data.sequence_length={sequence_length} must be at least 2.")


def _slice(document: Document, start: int, stop: int) -> Document:
    return Document(document.tokens[start:stop], document.response[start:stop])


def _pieces(document: Document, length: int) -> Iterator[Document]:
    for start in range(0, len(document) - 1, length - 1):
        yield _slice(document, start, start + length)


class StoredRows(Sequence[Sequence[int]]):
    """Rows that lie on disk; the documents they name do so too."""

    tokens: int
    """In all rows, padding left out."""

    targets: int
    """Tokens that carry a loss, in all rows."""

    @abstractmethod
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, padding left out."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of `sequence_length` tokens, or as long as their documents; item i is a Batch with that one row.

    Attributes:
        documents: what the rows are made of, each at most `sequence_length` long.
        rows: indices into `documents`, row by row.
        sequence_length: tokens per row, padding included.
        pad_id: token that fills the end of a row.
        taught: the teacher's cached targets of these rows; each Batch then brings its own along.
        filled: whether all rows are filled up to `sequence_length`.
        bucketed: whether rows of similar length are to come together.
    """

    documents: Sequence[Document]
    rows: Sequence[Sequence[int]]
    sequence_length: int
    pad_id: int = 0
    taught: TeacherCache | None = None
    filled: bool = True
    bucketed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """Row `index` as a Batch of shape [1, T]."""
        documents = [self.documents[which] for which in self.rows[index]]
        length = self.sequence_length if self.filled else sum(map(len, documents))
        input_ids = np.full(length, self.pad_id, dtype=np.int64)
        labels = np.full(length, IGNORE, dtype=np.int64)
        positions = np.zeros(length, dtype=np.int64)
        owners = np.full(length, -1, dtype=np.int64)
        end = 0
        for owner, document in enumerate(documents):
            start, end = end, end + len(document)
            input_ids[start:end] = document.tokens
            labels[start : end - 1] = np.where(document.response, document.tokens, IGNORE)[1:]
            positions[start:end] = np.arange(len(document))
            owners[start:end] = owner
        positions[end:] = np.arange(length - end)
        return Batch(
            input_ids=torch.from_numpy(input_ids)[None],
            labels=torch.from_numpy(labels)[None],
            position_ids=torch.from_numpy(positions)[None],
            documents=torch.from_numpy(owners)[None],
            targets=None if self.taught is None else self.taught[index],
        )

    def batch(self, indices: Iterable[int]) -> Batch:
        """Some rows together."""
        return collate([self[index] for index in indices], self.pad_id)

    def batches(self, rows_per_batch: int) -> Iterator[Batch]:
        """All rows in order, a few at a time: what is scored, not trained on."""
        for start in range(0, len(self), rows_per_batch):
            yield self.batch(range(start, min(start + rows_per_batch, len(self))))

    def documents_in(self, index: int) -> int:
        """Number of documents of row `index`; each carries a loss."""
        return len(self.rows[index])

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, padding left out."""
        if isinstance(self.rows, StoredRows):
            return self.rows.lengths()
        sizes = [sum(len(self.documents[which]) for which in row) for row in self.rows]
        return np.array(sizes, dtype=np.int32)

    def digest(self) -> str:
        """Of all that a model reads and is asked; rows on disk know theirs."""
        from razor.data.teacher_cache import rows_digest

        return getattr(self.rows, "digest", None) or rows_digest(self)

    @property
    def tokens(self) -> int:
        """Tokens in all rows, padding left out."""
        if isinstance(self.rows, StoredRows):
            return self.rows.tokens
        return sum(len(document) for document in self.documents)

    @property
    def targets(self) -> int:
        """Tokens that carry a loss, in all rows."""
        if isinstance(self.rows, StoredRows):
            return self.rows.targets
        return sum(document.targets for document in self.documents)

    def __repr__(self) -> str:
        return (
            f"PackedRows({len(self)} rows of {self.sequence_length}, {len(self.documents)} "
            f"documents, "
            f"{self.tokens} tokens, {self.targets} with a loss)"
        )


def pack(
    documents: Sequence[Document],
    sequence_length: int,
    pad_id: int = 0,
    seed: int = 0,
    packed: bool = True,
    bucketed: bool = False,
) -> PackedRows:
    """Fit documents (see `fit`) and fill rows best-fit decreasing over a seeded order; or one to a row."""
    fitted = fit(documents, sequence_length)
    sizes = [len(document) for document in fitted]
    rows = best_fit(sizes, sequence_length, np.random.default_rng(seed)) if packed else one_each(len(sizes))
    return PackedRows(fitted, rows, sequence_length, pad_id, filled=packed, bucketed=bucketed)


def one_each(count: int) -> list[list[int]]:
    """Each of `count` documents in a row of its own."""
    return [[which] for which in range(count)]


def best_fit(sizes: Sequence[int], length: int, chance: np.random.Generator) -> list[list[int]]:
    """Indices of `sizes` in rows of at most `length` together: best-fit decreasing, chance decides among equals."""
    order = chance.permutation(len(sizes)).tolist()
    order.sort(key=lambda which: -sizes[which])  # a stable sort: the seed decides among equals
    rows: list[list[int]] = []
    room: list[int] = []  # the free tokens of rows that are not full, in increasing order
    rows_by_room: dict[int, list[int]] = {}
    for which in order:
        size = sizes[which]
        place = bisect_left(room, size)
        if place == len(room):
            row, free = len(rows), length
            rows.append([])
        else:
            free = room.pop(place)
            row = rows_by_room[free].pop()
        rows[row].append(which)
        if free > size:
            insort(room, free - size)
            rows_by_room.setdefault(free - size, []).append(row)
    return rows


def collate(rows: Sequence[Batch], pad_id: int = 0) -> Batch:
    """Stack rows, filled up to the longest of them; documents are renumbered so that they stay unique."""
    length = max(row.input_ids.shape[1] for row in rows)
    rows = [_filled(row, length, pad_id) for row in rows]
    numbered, taken = [], 0
    for row in rows:
        numbered.append(torch.where(row.documents >= 0, row.documents + taken, row.documents))
        taken += int(row.documents.max()) + 1
    names = ("input_ids", "labels", "position_ids")
    stacked: dict[str, Any] = {name: torch.cat([getattr(row, name) for row in rows]) for name in names}
    said = [row.targets for row in rows if row.targets is not None]
    targets = Targets.cat(said) if said else None
    return replace(rows[0], documents=torch.cat(numbered), share=1.0, targets=targets, **stacked)


def _filled(row: Batch, length: int, pad_id: int) -> Batch:
    missing = length - row.input_ids.shape[1]
    if not missing:
        return row
    count = torch.arange(missing).expand(len(row.input_ids), -1)
    return replace(
        row,
        input_ids=F.pad(row.input_ids, (0, missing), value=pad_id),
        labels=F.pad(row.labels, (0, missing), value=IGNORE),
        documents=F.pad(row.documents, (0, missing), value=-1),
        position_ids=torch.cat([row.position_ids, count], 1),
    )
