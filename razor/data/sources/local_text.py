"""Text files of your own: a file, a folder, or a pattern. One file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from razor.data.document import Document, from_text
from razor.data.sources.base import Record, RecordSource
from razor.data.text_file import files_of, identity_of_files, opened, text_size
from razor.errors import RazorError

SUFFIXES = (".txt", ".md")

PART = 1 << 20
"""Characters that are read and tokenized at once."""


class LocalText(RecordSource):
    """Plain text read from disk.

    A long file is cut into rows later, and the held-out documents are then some of its pieces. One of more than a
    million characters is read in parts that end with a line, or else a word; each is a document, and only the
    first begins and only the last ends like one.

    Args:
        path: a file, a folder (its .txt and .md files, subfolders included), or a glob pattern. Files may be
            packed (.gz, .zst).
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """The files to read, sorted.

        Raises:
            RazorError: nothing there.
        """
        files = files_of(self.path, SUFFIXES)
        if not files:
            raise RazorError(
                f"data.source.path='{self.path}' gives no text: it takes a file, a folder with "
                f"{' or '.join(SUFFIXES)} files, or a pattern such as 'texts/**/*.txt'."
            )
        return files

    def check(self) -> None:
        """Raise RazorError if there are no files."""
        self.files()

    def records(self) -> Iterator[Record]:
        """(text, whether it begins a file, whether it ends one); blank files are skipped."""
        for file in self.files():
            with opened(file, "data.source.path") as stream:
                first, text = True, stream.read(PART)
                while text:
                    ahead = stream.read(PART)
                    whole, rest = _cut(text) if ahead else (text, "")
                    text = rest + ahead
                    if whole.strip():
                        yield f"'{file}'", (whole, first, not text)
                        first = False

    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """One document."""
        return [from_text(tokenizer, *record)]

    def identity(self) -> dict[str, Any]:
        """The files."""
        return {"kind": "text", "files": identity_of_files(self.files())}

    def size(self) -> int:
        """From the sizes of the files."""
        return text_size(self.files())

    def empty(self) -> RazorError:
        """Blank files."""
        return RazorError(f"data.source.path='{self.path}' holds only empty files.")


def _cut(text: str) -> tuple[str, str]:
    """`text` up to its last line's end, or its last space, and what follows."""
    for mark in ("\n", " "):
        place = text.rfind(mark) + 1
        if place > 0:
            return text[:place], text[place:]
    return text, ""
