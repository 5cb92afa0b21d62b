"""What a data source is: something that gives samples to train on and to score on, one small class per origin.

`DataSource` is what a run knows of any; `TextSource` gives documents of text, `ImageSource` (razor/data/images.py)
images. The rest of this file is about text.

To add one: subclass `RecordSource` in a file of its own, say what its records are and how one becomes documents,
and put a YAML that names the class under `conf/data`. Reading without holding the text, tokenizing in several
processes, caching, packing, shifting, the held-out split and resuming happen elsewhere and never need to know.
A source whose documents are made rather than read is a `TextSource`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from razor.data.document import Document
from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from razor.data.corpus import Corpus
    from razor.data.rows import Wanted
    from razor.models import Task

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Records without a usable one before giving up, where odd ones are left out."""


@dataclass(frozen=True)
class Teacher:
    """The teacher, for a source that lets it write; loaded only if it has to.

    Attributes:
        fingerprint: changes with the weights.
        load: gives the model, in the dtype and on the device it is to write with.
    """

    fingerprint: str
    load: Callable[[], Any]


class DataSource(ABC):
    """Where a run's samples come from.

    Attributes:
        task: kind of model that reads them.
        unit: what they are counted in.
        benchmarks: tasks whose train splits are in them, none being a statement too; None: nothing is known.
    """

    task: ClassVar[Task]
    unit: ClassVar[str]
    benchmarks: Sequence[str] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of an image; () of text."""
        return ()

    def class_names_for(self, config: PretrainedConfig) -> tuple[str, ...] | None:
        """Of the classes, in the order of a classifier with this config; None if there are none or nobody knows."""
        return None

    def described(self, config: PretrainedConfig) -> dict[str, str]:
        """What cards of a model with this config say of how its inputs are made; text needs no word."""
        return {}

    def check(self) -> None:  # noqa: B027 - most have nothing to find
        """Find, cheaply and before anything heavy runs, what would make `corpus` fail.

        Raises:
            RazorError: a file, a data set, a package or the network is not there.
        """

    def check_for(self, tokenizer: Callable[[], Any]) -> None:
        """`check`, for a model whose tokenizer this gives if it is asked."""
        self.check()

    @abstractmethod
    def check_rows(self, config: PretrainedConfig, length: int, longest: int | None) -> None:
        """Hold rows against the model that will read them; cheap.

        Args:
            config: of the model.
            length: `data.sequence_length`, tokens in a row.
            longest: sequence that the model can read; None if it does not say.

        Raises:
            RazorError: they do not fit.
        """

    @abstractmethod
    def corpus(self, wanted: Wanted) -> Corpus:
        """What is trained on and what is scored, the same at every call.

        Raises:
            RazorError: nothing is left to train on, or the source is not what it should be.
        """


class TextSource(DataSource):
    """Where documents come from."""

    task: ClassVar[Task] = "text"
    unit = "tokens"

    def check_for(self, tokenizer: Callable[[], Any]) -> None:
        """See `razor.data.corpus.check_source`."""
        from razor.data.corpus import check_source

        check_source(self, tokenizer)

    def check_rows(self, config: PretrainedConfig, length: int, longest: int | None) -> None:
        """Rows may be as long as the model can read."""
        from razor.data.corpus import check_sequence_length

        check_sequence_length(length, longest)

    def corpus(self, wanted: Wanted) -> Corpus:
        """Documents, split and packed; see `Corpus.build`."""
        from razor.data.corpus import Corpus

        return Corpus.build(
            self,
            wanted.tokenizer,
            wanted.sequence_length,
            wanted.held_out,
            wanted.seed,
            wanted.model_max_length,
            wanted.teacher,
            wanted.reading,
        )

    @abstractmethod
    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """All documents, in an order that is the same at every call.

        Args:
            tokenizer: a Transformers tokenizer.
            teacher: needed only by sources whose text the teacher writes.

        Raises:
            RazorError: the source is missing, empty, damaged, or does not fit the tokenizer.
        """


Record = tuple[str, Any]
"""What to call a record in an error text, and the record itself: a string, or plain data."""


class RecordSource(TextSource):
    """A source that is read record by record, so that it may be larger than memory.

    Objects are sent to the processes that tokenize: keep them small.
    """

    tolerant = False
    """Whether records that make no documents are left out and counted; else the first is an error."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All records, in an order that is the same at every call."""

    @abstractmethod
    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """The documents of one record.

        Raises:
            RazorError: it makes none; the text begins with `where`.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON-able, other for other records: files with sizes and times, a data set with its revision.

        "revision": None says that it cannot be found out now.
        """

    @abstractmethod
    def size(self) -> int | None:
        """About how many bytes of text there are, without reading it; None if nobody knows."""

    @abstractmethod
    def empty(self) -> RazorError:
        """What to say if no record makes a document."""

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """All documents, in memory."""
        documents: list[Document] = []
        odd: list[RazorError] = []
        for number, (where, record) in enumerate(self.records(), start=1):
            try:
                documents.extend(self.encode(tokenizer, record, where))
            except RazorError as error:
                if not self.tolerant:
                    raise
                odd.append(error)
            if self.tolerant and not documents and number == PATIENCE:
                break
        if not documents:
            raise odd[0] if odd else self.empty()
        if odd:
            say_left_out(len(odd), str(odd[0]))
        return documents


def say_left_out(count: int, first: str) -> None:
    """One line about the records that a tolerant source left out."""
    logger.warning("%d rows left out; the first: %s", count, first)


def check_limit(limit: int | None) -> None:
    """Raise RazorError for a `limit` that is no positive number."""
    if limit is not None and limit < 1:
        raise RazorError(f"data.source.limit={limit} must be at least 1, or null for everything.")
