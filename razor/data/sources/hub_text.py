"""Plain text from a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from razor.data.document import Document, from_text
from razor.data.sources.base import Record, RecordSource, check_limit
from razor.data.sources.hub import check_hub, hub_rows, known_revision
from razor.errors import RazorError

ROW_BYTES = 2000
"""A guess, for telling small sets from large ones."""


class HubText(RecordSource):
    """One text column of a hub data set.

    Args:
        id: data set, such as "Salesforce/wikitext".
        name: its configuration, if it has several.
        split: such as "train".
        column: the one that holds the text.
        streaming: read over the network as needed instead of downloading everything first.
        limit: read at most this many rows; None for all.
        join: this many rows in a row make one document (sets such as wikitext keep a line per row).
        revision: branch, tag or commit; None for the newest.
    """

    def __init__(
        self,
        id: str,
        name: str | None = None,
        split: str = "train",
        column: str = "text",
        streaming: bool = False,
        limit: int | None = None,
        join: int = 1,
        revision: str | None = None,
    ) -> None:
        check_limit(limit)
        if join < 1:
            raise RazorError(f"data.source.join={join} must be at least 1.")
        self.id = id
        self.name = name
        self.split = split
        self.column = column
        self.streaming = streaming
        self.limit = limit
        self.join = join
        self.revision = revision

    def check(self) -> None:
        """Raise RazorError if the hub or the data set is out of reach."""
        check_hub(self.id, self.revision, self.streaming)

    def records(self) -> Iterator[Record]:
        """The text of `join` rows at a time, blank ones left out."""
        texts, number = self._texts(), 1
        while group := list(islice(texts, self.join)):
            text = "".join(group)
            if text.strip():
                yield f"Row {number} of '{self.id}'", text
            number += len(group)

    def _texts(self) -> Iterator[str]:
        for row in hub_rows(self.id, self.name, self.split, self.streaming, self.limit, self.revision):
            if not isinstance(row.get(self.column), str):
                raise RazorError(
                    f"'{self.id}' has no text in a column '{self.column}'. Choices: {', '.join(sorted(row))}."
                )
            yield row[self.column]

    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """One document."""
        return [from_text(tokenizer, record)]

    def identity(self) -> dict[str, Any]:
        """All that chooses the rows."""
        chosen = {key: value for key, value in vars(self).items() if key != "streaming"}
        return {"kind": "hub_text", **chosen, "revision": known_revision(self.id, self.revision)}

    def size(self) -> int | None:
        """A guess from the limit."""
        return None if self.limit is None else self.limit * ROW_BYTES

    def empty(self) -> RazorError:
        """Only blank rows."""
        return RazorError(f"The column '{self.column}' of '{self.id}' ({self.split}) holds no text.")
