"""The playground's page in this process, of models that write by a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from razor.serve.desk import Desk
from razor.serve.engine import Writing
from razor.serve.playground import Playground
from razor.serve.question import Limits
from tests.serve.scripted import Scripted, saying


class ScriptedPage:
    """The page of two models that write by a script, and its address."""

    def __init__(self, folder: Path, **words: Any) -> None:
        for name in ("a.gguf", "b.gguf"):
            (folder / name).write_bytes(b"GGUF")
        self.script: Callable[[Writing], str] = saying("fine")
        self.desk = Desk(folder, Limits(), lambda found: Scripted(self.now, found.name))
        self.page, self.url = Playground(folder, port=0, **words)._launch(self.desk)

    def now(self, writing: Writing) -> str:
        return self.script(writing)

    def __enter__(self) -> ScriptedPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.desk.close()
        self.page.close(verbose=False)
