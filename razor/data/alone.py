"""One process at a time in a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, also against other processes; says so if it has to be waited for.

    The system lets go of it when a process ends, however that ends.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Another process writes '%s': waiting for it.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
