"""Files of arrays that are whole or not there.

Data is a safetensors file, and beside it lies a JSON, its note, with its SHA-256. Both are moved into place in one
step, the note last: that it is there says that the data is complete, and its checksum says that it still is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from razor.errors import RazorError
from razor.storage import atomic_write, file_digest

Facts = dict[str, Any]


def shard_path(folder: Path, number: int) -> Path:
    """The data of a numbered shard of a folder."""
    return folder / f"shard_{number:05d}.safetensors"


def note_path(data: Path) -> Path:
    """The note of some data."""
    return data.with_suffix(".json")


def save_checked(data: Path, tensors: Mapping[str, np.ndarray], **facts: Any) -> Facts:
    """Write arrays and their note; returns the note: `facts`, "sha256" and "bytes".

    Raises:
        RazorError: the disk is full, or nothing can be written there.
    """
    note = note_path(data)
    note.unlink(missing_ok=True)  # an old checksum must not vouch for new data
    with atomic_write(data) as temporary:
        temporary.write_bytes(save(dict(tensors)))  # not save_file: a full disk must be an OSError
    whole = {"sha256": file_digest(data), "bytes": data.stat().st_size, **facts}
    with atomic_write(note) as temporary:
        temporary.write_text(json.dumps(whole) + "\n")
    return whole


def check(data: Path) -> Facts | None:
    """The note of data that is whole, or None if it was not made yet.

    Raises:
        RazorError: it is damaged; the text says how.
    """
    note = note_path(data)
    if not note.is_file():
        return None
    try:
        facts: Facts = json.loads(note.read_text())
        size = data.stat().st_size
        if size != facts.get("bytes", size):
            raise ValueError(f"{size} bytes in place of {facts['bytes']}")
        if file_digest(data) != facts["sha256"]:
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "it is gone" if isinstance(error, FileNotFoundError) else error
        raise RazorError(f"'{data}' is damaged: {reason}.") from error
    return facts
