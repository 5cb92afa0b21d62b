"""Text files of your own: a file, a folder, or a pattern. One file is one document."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from razor.data.document import Document, from_text
from razor.data.sources.base import Teacher, TextSource
from razor.data.text_file import read_text
from razor.errors import RazorError

SUFFIXES = (".txt", ".md")


class LocalText(TextSource):
    """Plain text read from disk.

    A long file is cut into rows later, and the held-out documents are then some of its pieces.

    Args:
        path: a file, a folder (its .txt and .md files, subfolders included), or a glob pattern.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """The files to read, sorted.

        Raises:
            RazorError: nothing there.
        """
        place = Path(self.path).expanduser()
        if place.is_file():
            return [place]
        if place.is_dir():
            found = [file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES]
        else:
            found = [Path(name) for name in glob.glob(str(place), recursive=True)]
        files = sorted(file for file in found if file.is_file())
        if not files:
            raise RazorError(
                f"data.source.path='{self.path}' gives no text: it takes a file, a folder with "
                f"{' or '.join(SUFFIXES)} files, or a pattern such as 'texts/**/*.txt'."
            )
        return files

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """One document per file that is not blank."""
        texts = [read_text(file, "data.source.path") for file in self.files()]
        documents = [from_text(tokenizer, text) for text in texts if text.strip()]
        if not documents:
            raise RazorError(f"data.source.path='{self.path}' holds only empty files.")
        return documents
