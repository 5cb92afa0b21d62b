"""Measuring a table of scores: begun, gone on with, or read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from razor.allocate.scores import Score
from razor.allocate.subject import Subject
from razor.allocate.table import Measured, ScoreTable
from razor.distill import Batch
from razor.errors import RazorError
from razor.storage import digest

SECONDS = 5.0
"""Between two writes of a table that grows."""


def text_digest(batches: Sequence[Batch]) -> str:
    """What tells one calibration text from another."""
    return digest([[batch.input_ids.tolist(), batch.labels.tolist()] for batch in batches])


def text_tokens(batches: Sequence[Batch]) -> int:
    """Tokens of text, padding left out."""
    return sum(int((batch.documents >= 0).sum()) for batch in batches)


def kept(path: Path, measured: Measured) -> ScoreTable:
    """The table in a file as far as it has come, or an empty one if the file is none or another's."""
    try:
        found = ScoreTable.load(path)
    except RazorError:
        return ScoreTable(measured)
    return found if found.measured == measured else ScoreTable(measured)


def measure(score: Score, subject: Subject, table: ScoreTable, path: Path) -> ScoreTable:
    """Finish a table; what was known is not measured again.

    Args:
        score: that it is of.
        subject: that is measured.
        table: empty, or a part of it; it is filled.
        path: where it is kept, from time to time and whenever this ends, also by Ctrl-C.
    """
    begun, before, written = time.perf_counter(), table.seconds, time.perf_counter()
    try:
        for name, losses in score.measure(subject, frozenset(table.losses)):
            table.add(subject.targets[name], losses)
            if time.perf_counter() - written > SECONDS:
                table.seconds, written = before + time.perf_counter() - begun, time.perf_counter()
                table.save(path)
    finally:
        table.seconds = before + time.perf_counter() - begun
        if table.losses:
            table.save(path)
    return table
