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
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
    if truncated or len(useful) < len(fitted):
        logger.warning(
            "%d of %d documents were longer than %d tokens and lost their end; %d without a token "
            "to learn left out.",
            truncated,
            len(documents),
            sequence_length,
            len(fitted) - len(useful),
        )
    return useful


def check_length(sequence_length: int) -> None:
    """Raise RazorError unless a row can hold at least one prediction."""
    if sequence_length < 2:
        raise RazorError(f"data.sequence_length={sequence_length} must be at least 2.")


def _slice(document: Document, start: int, stop: int) -> Document:
    return Document(document.tokens[start:stop], document.response[start:stop])


def _pieces(document: Document, length: int) -> Iterator[Document]:
    for start in range(0, len(document) - 1, length - 1):
        yield _slice(document, start, start + length)


@dataclass(frozen=True)
class PackedRows:
    """Rows of exactly `sequence_length` tokens; item i is a Batch with that one row.

    Attributes:
        documents: what the rows are made of, each at most `sequence_length` long.
        rows: indices into `documents`, row by row.
        sequence_length: tokens per row, padding included.
        pad_id: token that fills the end of a row.
        taught: the teacher's cached targets of these rows; each Batch then brings its own along.
    """

    documents: Sequence[Document]
    rows: Sequence[Sequence[int]]
    sequence_length: int
    pad_id: int = 0
    taught: TeacherCache | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """Row `index` as a Batch of shape [1, T]."""
        length = self.sequence_length
        input_ids = np.full(length, self.pad_id, dtype=np.int64)
        labels = np.full(length, IGNORE, dtype=np.int64)
        positions = np.zeros(length, dtype=np.int64)
        owners = np.full(length, -1, dtype=np.int64)
        end = 0
        for owner, which in enumerate(self.rows[index]):
            document = self.documents[which]
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

    def batches(self, rows_per_batch: int) -> Iterator[Batch]:
        """All rows in order, a few at a time: what is scored, not trained on."""
        for start in range(0, len(self), rows_per_batch):
            stop = min(start + rows_per_batch, len(self))
            yield collate([self[index] for index in range(start, stop)])

    def documents_in(self, index: int) -> int:
        """Number of documents of row `index`; each carries a loss."""
        return len(self.rows[index])

    @property
    def tokens(self) -> int:
        """Tokens in all rows, padding left out."""
        return sum(len(document) for document in self.documents)

    @property
    def targets(self) -> int:
        """Tokens that carry a loss, in all rows."""
        return sum(document.targets for document in self.documents)

    def __repr__(self) -> str:
        return (
            f"PackedRows({len(self)} rows of {self.sequence_length}, {len(self.documents)} "
            f"documents, "
            f"{self.tokens} tokens, {self.targets} with a loss)"
        )


def pack(documents: Sequence[Document], sequence_length: int, pad_id: int = 0, seed: int = 0) -> PackedRows:
    """Fit documents (see `fit`) and fill rows best-fit decreasing over a seeded order."""
    fitted = fit(documents, sequence_length)
    order = np.random.default_rng(seed).permutation(len(fitted)).tolist()
    order.sort(key=lambda which: -len(fitted[which]))  # a stable sort: the seed decides among equals
    rows: list[list[int]] = []
    room: list[int] = []  # the free tokens of rows that are not full, in increasing order
    rows_by_room: dict[int, list[int]] = {}
    for which in order:
        size = len(fitted[which])
        place = bisect_left(room, size)
        if place == len(room):
            row, free = len(rows), sequence_length
            rows.append([])
        else:
            free = room.pop(place)
            row = rows_by_room[free].pop()
        rows[row].append(which)
        if free > size:
            insort(room, free - size)
            rows_by_room.setdefault(free - size, []).append(row)
    return PackedRows(fitted, rows, sequence_length, pad_id)


def collate(rows: Sequence[Batch]) -> Batch:
    """Stack batches of the same row length; documents are renumbered so that they stay unique."""
    numbered, taken = [], 0
    for row in rows:
        numbered.append(torch.where(row.documents >= 0, row.documents + taken, row.documents))
        taken += int(row.documents.max()) + 1
    names = ("input_ids", "labels", "position_ids")
    stacked: dict[str, Any] = {name: torch.cat([getattr(row, name) for row in rows]) for name in names}
    said = [row.targets for row in rows if row.targets is not None]
    targets = Targets.cat(said) if said else None
    return replace(rows[0], documents=torch.cat(numbered), share=1.0, targets=targets, **stacked)
