"""The report of a run: every number, a table for people, and two figures.

The table has the columns of the paper's: one row each for the 16-bit teacher, the student before training
(plain rounding) and the student after, with widths, every task, the average, held-out perplexity and KL, and
the compression ratio by both accountings (see `razor.quant.size`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from razor.evals.aligned import aligned
from razor.evals.held_out import HeldOut
from razor.evals.scores import Score, Scores
from razor.storage import atomic_write

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: teacher, before, after.
        w_a_kv: widths, as in 'W2.79-A8-KV8'.
        scores: benchmark scores, percent.
        held_out: perplexity and KL.
        ratio_paper: compression by the paper's accounting.
        ratio_disk: compression by bytes of the packed tensors.
        bytes_disk: those bytes.
    """

    name: str
    w_a_kv: str
    scores: Scores
    held_out: HeldOut
    ratio_paper: float
    ratio_disk: float
    bytes_disk: int

    def to_dict(self) -> dict[str, Any]:
        """The row as report.json holds it; `average` is null without tasks."""
        return {
            "name": self.name,
            "w_a_kv": self.w_a_kv,
            "tasks": {score.task: asdict(score) for score in self.scores.tasks},
            "average": self.scores.average,
            "perplexity": self.held_out.perplexity,
            "kl": self.held_out.kl,
            "agreement": self.held_out.agreement,
            "held_out_tokens": self.held_out.tokens,
            "ratio_paper": self.ratio_paper,
            "ratio_disk": self.ratio_disk,
            "bytes_disk": self.bytes_disk,
        }


@dataclass
class Report:
    """Everything a run found.

    Attributes:
        title: model and recipe.
        rows: teacher, before, after.
        facts: config, versions, seed, hardware, tokens, times: whatever a reader needs to repeat the run.
        notes: sentences that belong under the table.
        figures: names (without .png) of the figures beside the report.
    """

    title: str
    rows: list[Row]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        rows = [row.to_dict() for row in self.rows]
        return {"schema": SCHEMA, "title": self.title, "rows": rows, "notes": self.notes} | self.facts

    def table(self) -> str:
        """The table in Markdown, aligned for a terminal."""
        tasks = [score.task for score in self.rows[0].scores.tasks]
        average = ["average"] if tasks else []
        header = ["", "W-A-KV", *tasks, *average, "perplexity", "KL", "ratio", "on disk", "MB"]
        lines = [header] + [self._cells(row, bool(tasks)) for row in self.rows]
        return aligned(lines)

    @staticmethod
    def _cells(row: Row, scored: bool) -> list[str]:
        tasks = [_with_error(score) for score in row.scores.tasks]
        average = [f"{row.scores.average:.1f}"] if scored and row.scores.average is not None else []
        return [
            row.name,
            row.w_a_kv,
            *tasks,
            *average,
            f"{row.held_out.perplexity:.4g}",
            f"{row.held_out.kl:.3f}",
            f"{row.ratio_paper:.2f}x",
            f"{row.ratio_disk:.2f}x",
            f"{row.bytes_disk / 1e6:.1f}",
        ]

    def markdown(self) -> str:
        """What report.md holds."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        figures = "".join(f"\n![{name}]({name}.png)\n" for name in self.figures)
        return f"# {self.title}\n\n{self.table()}\n\n{notes}\n{figures}"

    def save(self, folder: Path) -> None:
        """Write report.json and report.md."""
        for name, text in (
            ("report.json", json.dumps(self.to_dict(), indent=1)),
            ("report.md", self.markdown()),
        ):
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _with_error(score: Score) -> str:
    error = "" if score.stderr is None else f" ±{score.stderr:.1f}"
    return f"{score.value:.1f}{error}"
