"""`razor export`: a finished run, or any packed folder, in the formats of other runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.cli.config import build, composed
from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.export.exporter import Exporter


def export(overrides: Sequence[str]) -> int:
    """`razor export`: write a compressed model for Transformers, llama.cpp, vLLM, and prove each."""
    from razor.export.compressed import Compressed
    from razor.export.exporter import export as write

    config = composed("export", overrides)
    exporters = exporters_of(config.export)
    if not exporters:
        raise RazorError("export=none leaves nothing to do: name a format, as in export=[packed,gguf].")
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    run = Path(str(config.run))
    compressed = Compressed.open(run)
    out = (compressed.folder.parent / "exports") if config.out is None else Path(str(config.out))
    with redirect_stdout(sys.stderr if config.json else sys.stdout):
        done = write(compressed, exporters, out)
    if config.json:
        print(json.dumps({name: str(folder) for name, folder in done.items()}))
    return 0


def exporters_of(node: Any) -> Mapping[str, Exporter]:
    """The exporters that a config's group `export` names."""
    return build(node) or {}
