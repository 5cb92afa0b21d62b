"""What rows are to the rest of the house: something that gives micro-batches, and can be counted and told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from razor.distill import Samples

if TYPE_CHECKING:
    from razor.data.reading import Reading
    from razor.data.sources.base import Teacher
    from razor.models.media_reader import MediaReader


class Rows(Protocol):
    """Rows to train on or to score on: documents (`PackedRows`), images (`ImageRows`), questions (`MediaRows`)."""

    @property
    def bucketed(self) -> bool:
        """Whether rows of similar length are to come together."""

    @property
    def tokens(self) -> int:
        """What they hold in all: tokens, padding left out, or images."""

    def __len__(self) -> int: ...

    def batch(self, indices: Iterable[int]) -> Samples:
        """Some rows together."""

    def batches(self, rows_per_batch: int) -> Iterator[Samples]:
        """All rows in order, a few at a time: what is scored, not trained on."""

    def documents_in(self, index: int) -> int:
        """Number of samples of a row."""

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, padding left out, or images."""

    def digest(self) -> str:
        """Other for other content."""


@dataclass(frozen=True)
class Wanted:
    """What a corpus is asked for, besides its source.

    Attributes:
        tokenizer: of the model that reads; None if it reads no text.
        held_out: samples to score on.
        seed: chooses them, and decides how rows are packed.
        sequence_length: tokens per row.
        model_max_length: longest row that the model reads; None if it has no limit.
        teacher: for sources whose text the teacher writes.
        reading: on disk or in memory, packed or not, in which order.
        reader: makes tokens and numbers of questions with images and sound; None if the model reads none.
        class_names: of the classes that the model tells apart, in its order; None if it does not know them.
    """

    tokenizer: Any
    held_out: int
    seed: int
    sequence_length: int
    model_max_length: int | None
    teacher: Teacher | None
    reading: Reading
    reader: MediaReader | None = None
    class_names: tuple[str, ...] | None = None
