"""What a person sees while something takes long: one bar each; in a log file, a line every ten seconds."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

from razor.processes import rank


def progress_bar(
    description: str,
    total: int | None,
    unit: str,
    initial: int = 0,
    stream: Any = None,
    hidden: bool = False,
) -> tqdm[Any]:
    """A bar on stderr (or `stream`) with speed and time left."""
    stream = stream or sys.stderr
    if rank():  # of several processes the first one talks
        stream = io.StringIO()
    terminal = stream.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        file=stream,
        disable=hidden,
        mininterval=0.1 if terminal else 10,
        maxinterval=10 if terminal else 60,
        ncols=None if terminal else 120,
        dynamic_ncols=terminal,
    )
