"""Finding texts that are nearly the same, among many, without comparing each with each.

Two texts are alike to the degree that they share runs of five tokens: the shared ones over all different ones
(Jaccard's index). To find a text's likes without looking at every earlier one, each text gets a *MinHash*
signature: under a random order of all possible runs, the first of its own. Two texts have the same first run with
a probability that is just their likeness (Broder 1997), so texts whose signatures agree in one of a few groups of
entries are candidates, and only with these the true likeness is computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RUN = 5
"""Tokens in a run."""

BANDS, ROWS = 24, 3
"""Groups of a signature and entries in each: likeness 0.5 is missed in 4 % of cases, 0.7 in under 0.01 %."""


class NearDuplicates:
    """The texts so far.

    Args:
        threshold: likeness, above 0 and at most 1, from which on a text counts as a repetition.
        given: runs of tokens that say nothing, because all texts share them (a chat template's).
    """

    def __init__(self, threshold: float, given: Iterable[Sequence[int]] = ()) -> None:
        self.threshold = threshold
        numbers = np.random.default_rng(5).integers(0, 2**63, (3, BANDS * ROWS), dtype=np.uint64)
        self._factor, self._shift = numbers[0] | np.uint64(1), numbers[1]
        self._mix = numbers[2, :RUN] | np.uint64(1)
        self._given = np.unique(np.concatenate([self._runs(run) for run in given] or [self._runs(())]))
        self._texts: list[NDArray[np.uint64]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def repeats(self, tokens: Sequence[int]) -> bool:
        """Whether a text is like an earlier one; if not, it is one of them from now on."""
        runs = np.setdiff1d(self._runs(tokens), self._given, assume_unique=True)
        if not len(runs):
            return False
        keys = self._keys(runs)
        candidates = {which for key in keys for which in self._buckets[key]}
        if any(self._likeness(runs, self._texts[which]) >= self.threshold for which in candidates):
            return True
        for key in keys:
            self._buckets[key].append(len(self._texts))
        self._texts.append(runs)
        return False

    def _runs(self, tokens: Sequence[int]) -> NDArray[np.uint64]:
        """Hashes of all different runs, sorted; a text shorter than a run is one."""
        ids = np.asarray(tokens, dtype=np.int64).astype(np.uint64) + np.uint64(1)
        if not len(ids):
            return ids
        ids = np.pad(ids, (0, max(0, RUN - len(ids))))
        windows = np.lib.stride_tricks.sliding_window_view(ids, RUN)
        hashes = (windows * self._mix).sum(-1, dtype=np.uint64)
        return np.unique(hashes ^ (hashes >> np.uint64(29)))

    def _keys(self, runs: NDArray[np.uint64]) -> list[tuple[int, bytes]]:
        orders = runs[:, None] * self._factor + self._shift  # wraps: a random order each column
        first = (orders >> np.uint64(32)).min(0).reshape(BANDS, ROWS)
        return [(band, row.tobytes()) for band, row in enumerate(first)]

    @staticmethod
    def _likeness(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
        shared = len(np.intersect1d(a, b, assume_unique=True))
        return shared / (len(a) + len(b) - shared)
