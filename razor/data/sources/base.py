"""What a data source is: something that gives documents, one small class per origin.

To add one: subclass `TextSource` in a file of its own, write `documents`, and put a YAML that names
the class under `conf/data`. Packing, shifting, the held-out split and resuming happen elsewhere and
never need to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from razor.data.document import Document
from razor.errors import RazorError


@dataclass(frozen=True)
class Teacher:
    """The teacher, for a source that lets it write; loaded only if it has to.

    Attributes:
        fingerprint: changes with the weights.
        load: gives the model, in the dtype and on the device it is to write with.
    """

    fingerprint: str
    load: Callable[[], Any]


class TextSource(ABC):
    """Where documents come from."""

    @abstractmethod
    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """All documents, in an order that is the same at every call.

        Args:
            tokenizer: a Transformers tokenizer.
            teacher: needed only by sources whose text the teacher writes.

        Raises:
            RazorError: the source is missing, empty, damaged, or does not fit the tokenizer.
        """


def check_limit(limit: int | None) -> None:
    """Raise RazorError for a `limit` that is no positive number."""
    if limit is not None and limit < 1:
        raise RazorError(f"data.source.limit={limit} must be at least 1, or null for everything.")
