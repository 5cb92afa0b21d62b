"""Reading the text files that a person named, and what is said when that fails."""

from __future__ import annotations

import glob
import gzip
import importlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from razor.errors import RazorError

PACKED = (".gz", ".zst")
"""Compressed files that are read as if they were not."""


def read_text(path: str | Path, option: str) -> str:
    """All of a UTF-8 file, without a byte order mark.

    Args:
        path: `~` is the home folder.
        option: the key that named it, for error texts.

    Raises:
        RazorError: no file, not UTF-8, or not readable.
    """
    with opened(path, option) as stream:
        return stream.read()


@contextmanager
def opened(path: str | Path, option: str) -> Iterator[IO[str]]:
    """A UTF-8 file to be read, without a byte order mark; `.gz` and `.zst` are unpacked. Lines end at LF alone.

    Raises:
        RazorError: no file, not UTF-8 or not readable, also while it is read.
    """
    place = Path(path).expanduser()
    options: dict[str, Any] = {"encoding": "utf-8-sig", "newline": "\n"}
    try:
        if place.suffix == ".gz" and place.is_file():
            stream: IO[str] = gzip.open(place, "rt", **options)  # noqa: SIM115 - closed below
        elif place.suffix == ".zst" and place.is_file():
            stream = _zstandard().open(place, "rt", **options)
        else:
            stream = place.open(**options)
        with stream:
            yield stream
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RazorError(f"{option}='{path}' is no file.") from error
    except UnicodeDecodeError as error:
        raise RazorError(f"'{place}' is no UTF-8 text (byte {error.start}): convert it first.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RazorError(f"'{place}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _zstandard() -> Any:
    for name in ("compression.zstd", "zstandard"):  # the first comes with Python 3.14
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise RazorError("Reading .zst files needs a package: pip install zstandard (or unpack them first).")


def files_of(path: str, suffixes: Sequence[str] = ()) -> list[Path]:
    """The files that `path` names, sorted: a file, a folder's files with one of the suffixes, or a glob pattern.

    Suffixes may be followed by one of `PACKED`. Nothing is there: an empty list.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        ends = tuple(suffix + packed for suffix in suffixes for packed in ("", *PACKED))
        found = [file for file in place.rglob("*") if file.name.lower().endswith(ends)] if ends else []
    else:
        found = [Path(name) for name in glob.glob(str(place), recursive=True)]
    return sorted(file for file in found if file.is_file())


def identity_of_files(files: Sequence[Path]) -> list[list[Any]]:
    """Names, sizes and times of change: whether files are those of before, without reading them."""
    states = [(file.resolve(), file.stat()) for file in files]
    return [[str(file), state.st_size, state.st_mtime_ns] for file, state in states]


UNPACKED = {".gz": 4, ".zst": 4, ".parquet": 3}
"""About how much larger the text is than the file."""


def text_size(files: Sequence[Path]) -> int:
    """About how many bytes of text there are in files."""
    return sum(file.stat().st_size * UNPACKED.get(file.suffix, 1) for file in files)
