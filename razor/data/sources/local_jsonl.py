"""A file of your own with one JSON object per line: pairs, chats or texts.

`records.py` lists the shapes a line may have.
"""

from __future__ import annotations

import json
from typing import Any

from razor.data.document import Document
from razor.data.sources.base import Teacher, TextSource, check_limit
from razor.data.sources.records import documents_of
from razor.data.text_file import read_text
from razor.errors import RazorError


class LocalJsonl(TextSource):
    """Records read from a JSONL file; lines may be of different shapes, blank lines are skipped.

    Args:
        path: the file.
        limit: read at most this many records; None for all.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        check_limit(limit)
        self.path = path
        self.limit = limit

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """One document or more per record.

        Raises:
            RazorError: no file, an empty one, a line that is no JSON or has none of the shapes
                (with its number).
        """
        documents: list[Document] = []
        records = 0
        for number, line in enumerate(read_text(self.path, "data.source.path").split("\n"), start=1):
            if not line.strip():
                continue
            if records == self.limit:
                break
            records += 1
            where = f"Line {number} of '{self.path}'"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RazorError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
            documents.extend(documents_of(record, tokenizer, where))
        if not documents:
            raise RazorError(f"data.source.path='{self.path}' is empty: it needs one JSON object per line.")
        return documents
