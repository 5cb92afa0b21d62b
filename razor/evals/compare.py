"""Many runs in one table: what each was, what it scored, and which of them can be compared at all.

Two numbers may stand in one column only if they measure the same thing. So every row is held against the others:
another model, other training or held-out text, another number of tokens, other sequence lengths or other
benchmark rows make it *not comparable*; it stays in the table, with a mark and the reason. What most rows share is
the measure.

Runs that differ in their seed alone are repeats of one experiment: one row, mean ± standard deviation over the
seeds (of the sample: n - 1). One seed is worth one number, and its row says which.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from razor.evals.compare_runs import Run

LAST = ("after", "before", "teacher")
GROUPS = ("model", "quant", "distill")
"""Groups whose option is named in a column of its own: their keys are shown only where the name does not tell."""
SILENT = ("logger.", "model.note")
"""Parts of a config that cannot change a number."""


@dataclass
class Line:
    """One row of the comparison: a model of a run, or of several that differ in their seed alone.

    Attributes:
        runs: the repeats, by seed.
        row: which model of them: after, before, teacher.
        marks: why it cannot be compared with the rest.
        extra: values of the keys in which the runs of a table differ.
    """

    runs: list[Run]
    row: str
    marks: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """The run that speaks for what all repeats share."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """Of the run, or of the first and how many there are."""
        more = f" (+{len(self.runs) - 1})" if len(self.runs) > 1 else ""
        return f"{self.first.name}{more}" + ("" if self.row == "after" else f", {self.row}")

    @property
    def seeds(self) -> str:
        """The seeds, as in '0, 1'."""
        return ", ".join(str(run.seed) for run in self.runs)

    def values(self, key: str) -> list[float]:
        """A number of report.json's row, for each repeat that has it; `tasks.NAME` is a task's score."""
        found = [run.number(self.row, key) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """Mean over the repeats; None if none has the number."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Standard deviation over the repeats (n - 1); None for fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def bits(self) -> float:
        """True bits per weight by the paper's accounting, 16 / ratio."""
        return 16 / self.first.number(self.row, "ratio_paper")  # type: ignore[operator]


@dataclass
class Comparison:
    """Rows to show, keys in which they differ, tasks that any of them scored."""

    lines: list[Line]
    differing: list[str]
    tasks: list[str]
    notes: list[str]

    @property
    def score(self) -> str:
        """What rows are ranked by: the average of benchmarks if every row has it, else held-out KL."""
        return "average" if all(line.mean("average") is not None for line in self.lines) else "kl"


def compare(runs: Sequence[Run], rows: Sequence[str] = ("after",), seeds: str = "mean") -> Comparison:
    """Group, hold against each other, sort: from wide to narrow, better ones first.

    Args:
        runs: finished ones.
        rows: which models of each.
        seeds: mean groups repeats, each gives every run a row of its own.
    """
    groups = grouped(runs) if seeds == "mean" else [[run] for run in runs]
    differing = differing_keys(runs)
    lines = [Line(group, row) for row in rows for group in groups]
    for line in lines:
        line.extra = {key: line.first.settings.get(key) for key in differing}
    notes = mark(lines)
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    found = Comparison(lines, differing, tasks, notes)
    ranked, sign = found.score, -1 if found.score == "average" else 1

    def place(line: Line) -> tuple[str, float, int, float]:
        return line.first.model, -line.bits, LAST.index(line.row), sign * (line.mean(ranked) or 0)

    lines.sort(key=place)
    return found


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in seeds alone, together; the same run twice stays two."""
    groups: dict[Hashable, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (str(run.seed), run.name)):
        same = frozenset(
            (key, repr(value))
            for key, value in run.settings.items()
            if key not in run.seed_keys and not key.startswith(SILENT)
        )
        copy = 0
        while any(other.seed == run.seed for other in groups.get((same, run.fingerprint, copy), [])):
            copy += 1
        groups.setdefault((same, run.fingerprint, copy), []).append(run)
    return list(groups.values())


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Config keys in which runs differ and which no column shows yet."""
    silent = {key for run in runs for key in run.seed_keys}
    keys = sorted({key for run in runs for key in run.settings} - silent)
    return [key for key in keys if not key.startswith(SILENT) and not told(key, runs)]


def told(key: str, runs: Sequence[Run]) -> bool:
    """Whether the columns for model, quant, losses and steps already tell the value of a key."""
    values: dict[Hashable, set[str]] = {}
    group = key.partition(".")[0]
    for run in runs:
        named: Hashable = (run.model, run.quant, run.losses) if group in GROUPS else None
        named = run.steps if key == "trainer.max_steps" else named
        values.setdefault(named, set()).add(repr(run.settings.get(key)))
    return all(len(found) == 1 for found in values.values())


def mark(lines: Sequence[Line]) -> list[str]:
    """Mark the rows that differ from what most share; returns sentences about what was shared, and the hardware."""
    notes = []
    if any(run.text is None for line in lines for run in line.runs):
        notes.append(
            "reports of an older version do not say which text they are of: that is not compared for them."
        )
    for what, of in ASPECTS.items():
        found = [of(line) for line in lines]
        if len(set(found)) < 2:
            continue
        usual = Counter(found).most_common(1)[0][0]
        for line, value in zip(lines, found, strict=True):
            seeded = what in OF_THE_SEED and any(mark.startswith("seeds:") for mark in line.marks)
            if value != usual and not seeded:
                line.marks.append(f"{what}: {shown(value)}, not {shown(usual)}")
    notes += [
        f"{line.name}: trained on the train splits of {shown(line.first.benchmarks_in_training)}; scores on these "
        "are of tasks that were trained on."
        for line in lines
        if line.first.benchmarks_in_training and line.row == "after"
    ]
    hardware = sorted({run.hardware for line in lines for run in line.runs})
    if len(hardware) > 1:
        notes.append(f"made on different machines, which may show in the last digits: {'; '.join(hardware)}.")
    return notes


def shown(value: Any) -> str:
    """A value of an aspect for people."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _text(which: str) -> Any:
    return lambda line: tuple(dict.fromkeys((run.text or {}).get(which, "not recorded") for run in line.runs))


ASPECTS: dict[str, Any] = {
    "model": lambda line: (line.first.model, line.first.fingerprint),
    "teacher": lambda line: line.first.teacher,
    "seeds": lambda line: line.seeds,
    "training text": _text("train"),
    "held-out text": _text("held_out"),
    "benchmarks trained on": lambda line: line.first.benchmarks_in_training,
    "tokens trained": lambda line: line.first.tokens,
    "sequence length": lambda line: line.first.settings.get("data.sequence_length"),
    "benchmarks": lambda line: line.first.benchmarks,
}
"""What two rows have to share to be compared, and where to find it."""
OF_THE_SEED = ("training text", "held-out text")
"""Which of them follow from the seed, so that other seeds are reason enough."""


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (bits, score) that no other point beats in both: fewer bits and a higher score; from few bits to many."""
    best, found = -math.inf, []
    for bits, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if score > best:
            best = score
            found.append((bits, score))
    return found
