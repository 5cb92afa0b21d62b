"""Plain text from a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from razor.data.document import Document, from_text
from razor.data.sources.base import Teacher, TextSource, check_limit
from razor.errors import RazorError


class HubText(TextSource):
    """One text column of a hub data set.

    Args:
        id: data set, such as "Salesforce/wikitext".
        name: its configuration, if it has several.
        split: such as "train".
        column: the one that holds the text.
        streaming: read over the network as needed instead of downloading everything first.
        limit: read at most this many rows; None for all.
        join: this many rows in a row make one document (sets such as wikitext keep a line per row).
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

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """One document per `join` rows, blank ones left out."""
        documents: list[Document] = []
        texts = self._texts()
        while group := list(islice(texts, self.join)):
            text = "".join(group)
            if text.strip():
                documents.append(from_text(tokenizer, text))
        if not documents:
            raise RazorError(f"The column '{self.column}' of '{self.id}' ({self.split}) holds no text.")
        return documents

    def _texts(self) -> Iterator[str]:
        for row in hub_rows(self.id, self.name, self.split, self.streaming, self.limit):
            if not isinstance(row.get(self.column), str):
                raise RazorError(
                    f"'{self.id}' has no text in a column '{self.column}'. Choices: {', '.join(sorted(row))}."
                )
            yield row[self.column]


def hub_rows(
    id: str, name: str | None, split: str, streaming: bool, limit: int | None
) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub data set, in order.

    Raises:
        RazorError: no network, no such data set, configuration or split, or no permission; in one
            line.
    """
    import datasets  # takes a second to import, and only this kind of source needs it

    try:
        rows = datasets.load_dataset(id, name, split=split, streaming=streaming)
        yield from islice(rows, limit)
    except Exception as error:  # every storage and every format behind the hub raises its own kind
        lines = str(error).strip().splitlines()
        reason = " ".join(line.strip() for line in lines)[:200] or type(error).__name__
        which = f"'{id}'" + (f" (name={name})" if name else "")
        raise RazorError(
            f"The data set {which}, split '{split}', cannot be read from the hub: {reason} -- "
            f"check the id, the network, and "
            "whether it asks for a login (hf auth login). Without a hub: data=teacher_made, "
            "local_text or local_jsonl."
        ) from error
