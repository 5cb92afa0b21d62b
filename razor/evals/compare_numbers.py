"""Whether two runs of one config came to the same numbers, to the last digit, and where they did not.

Three things are held against each other: every number of the report's table, every logged value of every step, and
the bytes of the packed model. Numbers that measure the machine (tokens per second, memory) are left out.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from razor.evals.compare_runs import read_report
from razor.storage import file_digest, flat

METRICS, WEIGHTS = Path("logs") / "metrics.csv", Path("packed") / "model.safetensors"
OF_THE_MACHINE = ("per_second", "speed", "seconds", "memory", "mfu", "time")
"""Parts of the names of logged values that measure the machine, not the run."""


@dataclass(frozen=True)
class Difference:
    """A number that is not what it was; None where one side lacks it."""

    name: str
    then: Any
    now: Any

    @property
    def size(self) -> float:
        """Relative to the larger of the two; infinite for what is no pair of numbers."""
        if not all(isinstance(value, (int, float)) for value in (self.then, self.now)):
            return math.inf
        scale = max(abs(self.then), abs(self.now))
        return abs(self.then - self.now) / scale if scale and math.isfinite(scale) else math.inf


@dataclass(frozen=True)
class Match:
    """What was held against each other, and what differs, worst first within each kind."""

    compared: dict[str, int]
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        """Whether all is as it was, to the last digit."""
        return not self.differences


def match(then: Path, now: Path) -> Match:
    """Compare two folders of finished runs.

    Raises:
        RazorError: one of them holds no whole report.
    """
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "numbers of the report": (_rows(then), _rows(now)),
        "logged values": (_logged(then), _logged(now)),
        "packed files": (_packed(then), _packed(now)),
    }
    differences: list[Difference] = []
    for old, new in kinds.values():
        names = [name for name in old | new if not _same(old.get(name), new.get(name))]
        found = [Difference(name, old.get(name), new.get(name)) for name in names]
        differences += sorted(found, key=lambda difference: -difference.size)
    return Match({name: len(old) for name, (old, _) in kinds.items()}, differences)


def _same(then: Any, now: Any) -> bool:
    both_nan = all(isinstance(value, float) and math.isnan(value) for value in (then, now))
    return both_nan or then == now


def _rows(folder: Path) -> dict[str, Any]:
    return flat({row["name"]: row for row in read_report(folder)["rows"]})


def _logged(folder: Path) -> dict[str, Any]:
    """'loss/total, step 3' -> value; empty if the run logged no CSV."""
    path, found = folder / METRICS, {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for name, value in row.items():
                    if value and name != "step" and not any(part in name for part in OF_THE_MACHINE):
                        found[f"{name}, step {row['step']}"] = float(value)
    return found


def _packed(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS
    return {str(WEIGHTS): file_digest(path)[:16]} if path.is_file() else {}
