"""Files of your own with one record a line or row: pairs, chats or texts.

`records.py` lists the shapes a record may have. Files are read as they are needed and may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from razor.data.document import Document
from razor.data.sources.base import Record, RecordSource, check_limit
from razor.data.sources.records import documents_of
from razor.data.text_file import files_of, identity_of_files, opened, text_size
from razor.errors import RazorError

SUFFIXES = (".jsonl", ".parquet")


class LocalJsonl(RecordSource):
    """Records read from JSONL or Parquet files; they may be of different shapes, blank lines are skipped.

    Args:
        path: a file, a folder (its .jsonl and .parquet files, subfolders included), or a pattern such as
            'data/*.jsonl'. JSONL may be packed (.gz, .zst).
        limit: read at most this many records; None for all.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        check_limit(limit)
        self.path = path
        self.limit = limit

    def files(self) -> list[Path]:
        """The files to read, sorted.

        Raises:
            RazorError: nothing there.
        """
        files = files_of(self.path, SUFFIXES)
        if not files:
            raise RazorError(
                f"data.source.path='{self.path}' is no file: it takes a file, a folder with .jsonl or .parquet "
                "files, or a pattern such as 'data/*.jsonl'."
            )
        return files

    def check(self) -> None:
        """Raise RazorError if there are no files."""
        self.files()

    def records(self) -> Iterator[Record]:
        """Lines as they are, rows as dictionaries."""
        yield from islice((record for file in self.files() for record in self._of(file)), self.limit)

    def _of(self, file: Path) -> Iterator[Record]:
        if file.suffix == ".parquet":
            yield from _rows(file)
            return
        with opened(file, "data.source.path") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"Line {number} of '{file}'", line

    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """One document or more.

        Raises:
            RazorError: it is no JSON, or has none of the shapes.
        """
        if isinstance(record, str):
            try:
                record = json.loads(record)
            except json.JSONDecodeError as error:
                raise RazorError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
            except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
                raise RazorError(f"{where} cannot be read as JSON ({type(error).__name__}).") from error
        return documents_of(record, tokenizer, where)

    def identity(self) -> dict[str, Any]:
        """Files and limit."""
        return {"kind": "records", "files": identity_of_files(self.files()), "limit": self.limit}

    def size(self) -> int:
        """From the sizes of the files; a limit is not looked at."""
        return text_size(self.files())

    def empty(self) -> RazorError:
        """No record."""
        return RazorError(f"data.source.path='{self.path}' is empty: it needs one JSON object per line.")


def _rows(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    # a row has every column; those without a value were not given
                    yield f"Row {number} of '{file}'", {k: v for k, v in row.items() if v is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise RazorError(
            f"'{file}' cannot be read as Parquet: {' '.join(str(error).split())[:200]}"
        ) from error
