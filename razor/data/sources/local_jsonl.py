"""A file of your own with one JSON object per line: pairs, chats or texts.

`records.py` lists the shapes a line may have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from razor.data.document import Document
from razor.data.sources.base import Teacher, TextSource, check_limit
from razor.data.sources.records import documents_of
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
        for number, line in enumerate(self._lines(), start=1):
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

    def _lines(self) -> list[str]:
        place = Path(self.path).expanduser()
        try:
            return place.read_text(encoding="utf-8-sig").split("\n")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise RazorError(f"data.source.path='{self.path}' is no file: give a .jsonl file.") from error
        except UnicodeDecodeError as error:
            raise RazorError(f"'{place}' is no UTF-8 text (byte {error.start}): convert it first.") from error
        except OSError as error:
            raise RazorError(f"'{place}' cannot be read: {error.strerror}.") from error
