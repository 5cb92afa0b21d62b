"""Instructions and answers from a data set of the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from razor.data.document import Document
from razor.data.sources.base import Teacher, TextSource, check_limit
from razor.data.sources.hub_text import hub_rows
from razor.data.sources.records import documents_of
from razor.errors import RazorError

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Rows without a usable one before giving up."""


class HubInstruct(TextSource):
    """Chats, or prompts with responses, of a hub data set.

    Args:
        id: data set, such as "BAAI/Infinity-Instruct".
        name: its configuration, if it has several.
        split: such as "train".
        messages: column with chats, either as role/content or as from/value turns; or None and
        prompt, response: two columns of text.
        streaming: read over the network as needed instead of downloading everything first.
        limit: read at most this many rows; None for all.

    Raises:
        RazorError: not exactly one of `messages` and `prompt` with `response` was named.
    """

    def __init__(
        self,
        id: str,
        name: str | None = None,
        split: str = "train",
        messages: str | None = None,
        prompt: str | None = None,
        response: str | None = None,
        streaming: bool = True,
        limit: int | None = None,
    ) -> None:
        check_limit(limit)
        if (messages is None) == (prompt is None) or (prompt is None) != (response is None):
            raise RazorError(
                f"data.source names messages={messages}, prompt={prompt}, response={response}: "
                f"name either the column "
                "'messages' or the columns 'prompt' and 'response'."
            )
        self.id = id
        self.name = name
        self.split = split
        self.columns = {"messages": messages} if messages else {"prompt": prompt, "response": response}
        self.streaming = streaming
        self.limit = limit

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """One document or more per row.

        Public sets have the odd row no template accepts (a chat that the assistant begins). Such
        rows are left out and counted in one line, unless the first rows are all like that: then the
        first one's error is raised.
        """
        documents: list[Document] = []
        left_out: list[RazorError] = []
        rows = hub_rows(self.id, self.name, self.split, self.streaming, self.limit)
        for number, row in enumerate(rows, start=1):
            record, where = self._record(row), f"Row {number} of '{self.id}'"
            try:
                documents.extend(documents_of(record, tokenizer, where))
            except RazorError as error:
                left_out.append(error)
            if not documents and number == PATIENCE:
                break
        if not documents:
            raise (left_out[0] if left_out else RazorError(f"'{self.id}' ({self.split}) has no rows."))
        if left_out:
            logger.warning("%d rows left out; the first: %s", len(left_out), left_out[0])
        return documents

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        for column in self.columns.values():
            if column not in row:
                raise RazorError(f"'{self.id}' has no column '{column}'. Choices: {', '.join(sorted(row))}.")
        return {key: row[str(column)] for key, column in self.columns.items()}
