"""Slices of arrays in safetensors files, read by position.

Mapped pages count as memory of the process that touched them, up to the size of the data set; what is read by
position is a few bytes that are forgotten again. Any number of processes may read one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

OPEN_FILES = 64

TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64}
"""Names of the format -> types."""


class TensorFiles:
    """Numbered files of one-dimensional arrays; opened as they are needed, a few at a time.

    Args:
        path: of a number.
    """

    def __init__(self, path: Callable[[int], Path]) -> None:
        self._path = path
        self._open: dict[int, tuple[BinaryIO, dict[str, Any]]] = {}

    def read(self, number: int, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements `start` to `stop` of array `name` of file `number`, to its end if None."""
        if number not in self._open:
            self._make_room()
            self._open[number] = _opened(self._path(number))
        file, arrays = self._open[number]
        kind, place, length = arrays[name]
        size = np.dtype(kind).itemsize
        stop = length if stop is None else min(stop, length)
        return np.frombuffer(_bytes_at(file, place + start * size, (stop - start) * size), dtype=kind)

    def _make_room(self) -> None:
        if len(self._open) >= OPEN_FILES:
            self.close()

    def close(self) -> None:
        """Close all files; reading opens them again."""
        for file, _ in self._open.values():
            file.close()
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker of a loader opens its own


def _opened(path: Path) -> tuple[BinaryIO, dict[str, Any]]:
    """A file, and (type, place in bytes, length) of its arrays."""
    file = path.open("rb", buffering=0)
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    arrays = {
        name: (TYPES[about["dtype"]], 8 + size + about["data_offsets"][0], int(np.prod(about["shape"])))
        for name, about in header.items()
        if name != "__metadata__"
    }
    return file, arrays


def _bytes_at(file: BinaryIO, place: int, size: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, place)
    file.seek(place)  # where there is no pread there is no fork, so nobody shares the position
    return file.read(size)
