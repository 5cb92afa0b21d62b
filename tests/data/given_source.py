"""A source for tests: strings that are given, in a module of its own so that other processes can import it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from razor.data.document import from_text
from razor.data.sources.base import RecordSource
from razor.errors import RazorError


class GivenTexts(RecordSource):
    """`bad` texts make no document; a text "die" ends the process that tokenizes it."""

    def __init__(self, texts: Sequence[str], tolerant: bool = False, about: Any = None) -> None:
        self.texts, self.tolerant, self.about = list(texts), tolerant, about
        self.read = 0

    def records(self):
        for number, text in enumerate(self.texts):
            self.read += 1
            yield f"Text {number}", text

    def encode(self, tokenizer, record, where):
        if record.startswith("bad"):
            raise RazorError(f"{where} is bad.")
        if record == "die":
            os._exit(1)
        return [from_text(tokenizer, record)] if record else []

    def identity(self):
        return {"kind": "given", "about": self.about}

    def size(self):
        return sum(map(len, self.texts))

    def empty(self):
        return RazorError("Nothing was given.")
