"""Text that is looked at before training: by a start, by the scores of an allocation.

Both look at the same rows, so a run that uses both has seen them once. They are the rows that training in the order
of the same seed comes to last (`steps.py`; nearly so where rows come in buckets): what a student was fitted to has
little to teach it, and seen first it would spend the steps at which most is to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from razor.data.packing import PackedRows
from razor.distill import Batch


def calibration(rows: PackedRows, count: int, seed: int, tokens: int) -> list[Batch]:
    """So many of the rows, or all if there are fewer, as batches; fewer rows are always among more.

    Args:
        rows: of training text.
        count: how many are wanted.
        seed: of the order of training.
        tokens: in a batch, about.
    """
    first_epoch = np.random.default_rng([seed, 0]).permutation(len(rows))
    return in_batches(rows, first_epoch[::-1][:count].tolist(), tokens)


def in_batches(rows: PackedRows, chosen: Sequence[int], tokens: int) -> list[Batch]:
    """These rows as batches of about so many tokens."""
    each = max(1, tokens // rows.sequence_length)
    return [rows.batch(chosen[start : start + each]) for start in range(0, len(chosen), each)]
