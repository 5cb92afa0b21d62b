"""Which models of a folder can be talked to: exports of Razor, and GGUF files from anywhere.

Looking costs no more than reading names and a few small files; weights and checksums are looked at when a model is
opened. What a manifest says of a model (its bits, what it came from) is shown as it stands there. Files come and go
while a folder is looked through, and links may lead nowhere: what cannot be looked at is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from razor.export.manifest import MANIFEST
from razor.export.packed_files import CARD, CONFIG, is_packed

KINDS = ("gguf", "packed", "dense")
"""What can be talked to, the fastest first."""

SKIPPED = {"checkpoints", "wandb", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class Found:
    """A model on the disk.

    Attributes:
        name: where it lies below the folder that was searched.
        path: the GGUF file, or the folder.
        kind: one of `KINDS`.
        bits: W-A-KV, as far as the export says it.
        bytes: of its weights' files.
    """

    name: str
    path: Path
    kind: str
    bits: str
    bytes: int

    @property
    def manifest(self) -> Path | None:
        """The folder whose manifest knows its checksums, if there is one."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder if (folder / MANIFEST).is_file() else None

    def stamp(self) -> tuple[tuple[str, int, int, int], ...]:
        """Name, size, inode and time of every file that it is loaded from: another stamp, another model."""
        try:
            files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        except OSError:  # it has just gone
            files = []
        seen = [(path.name, _stat(path)) for path in files]
        return tuple((name, s.st_size, s.st_ino, s.st_mtime_ns) for name, s in seen if s is not None)

    @property
    def depth(self) -> int:
        """How many folders it lies below the one that was searched."""
        return self.name.count("/")

    def label(self) -> str:
        """Name, bits and size, for people."""
        return " · ".join(part for part in (self.name, self.kind, self.bits, size_words(self.bytes)) if part)


def find_models(folder: Path) -> list[Found]:
    """All models below a folder, by name; of a GGUF file just itself; none if there is nothing.

    Links to folders are not followed, hidden folders and those of checkpoints are left out.
    """
    if folder.is_file():
        return _gguf(folder, folder.name) if folder.suffix == ".gguf" else []
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        kind = _kind(here, files)
        if kind is not None:
            name = here.relative_to(folder).as_posix()
            weights = [_stat(here / file) for file in files if file.endswith(".safetensors")]
            size = sum(one.st_size for one in weights if one is not None)
            name = name if name != "." else here.resolve().name
            found.append(Found(name, here, kind, _bits(here), size))
        for file in files:
            if file.endswith(".gguf") and not file.startswith("."):
                found += _gguf(here / file, (here / file).relative_to(folder).as_posix())
        folders[:] = [f for f in folders if kind is None and f not in SKIPPED and not f.startswith(".")]
    return sorted(found, key=lambda one: one.name)


def size_words(size: int) -> str:
    """Bytes as MB or GB (10^6, 10^9)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _gguf(path: Path, name: str) -> list[Found]:
    """The file as a model; nothing where it is none or has just gone."""
    seen = _stat(path)
    return [Found(name, path, "gguf", _bits(path.parent), seen.st_size)] if seen is not None else []


def _stat(path: Path) -> os.stat_result | None:
    """What is known of a file, of that which a link leads to; None of a link that leads nowhere."""
    try:
        return path.stat()
    except OSError:
        return None


def _kind(folder: Path, files: list[str]) -> str | None:
    """`packed`, `dense`, or None for any other folder (another export, which no engine here runs, too)."""
    if CARD in files:
        return "packed"
    if CONFIG not in files or not any(file.endswith(".safetensors") for file in files):
        return None
    if is_packed(folder):  # saved again by Transformers, which leaves the card out
        return "packed"
    if _read(folder / MANIFEST).get("format") == "dense":
        return "dense"
    return None if "quantization_config" in _read(folder / CONFIG) else "dense"


def _bits(folder: Path) -> str:
    return next(iter(_told(folder, "w_a_kv")), "")


def _told(folder: Path, key: str) -> Iterator[str]:
    """What manifest or card of a folder say about a key."""
    for file in (MANIFEST, CARD):
        about = _read(folder / file).get("about")
        if isinstance(about, dict) and isinstance(about.get(key), str):
            yield about[key]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it is none, since damage is told when a model is opened."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
