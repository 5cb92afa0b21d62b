"""Models side by side: scores, their average, widths, compression; for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from razor.evals.aligned import aligned
from razor.evals.report import _with_error
from razor.evals.scores import Scores
from razor.evals.targets import Target
from razor.storage import atomic_write

SCHEMA = 1


@dataclass(frozen=True)
class ScoreTable:
    """What `razor evaluate` found.

    Attributes:
        rows: each model with its scores.
        facts: benchmark and versions: whatever a reader needs to repeat it.
        notes: sentences that belong under the table.
    """

    rows: Sequence[tuple[Target, Scores]]
    facts: Mapping[str, Any]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds; a row as in the report of a run, unknown numbers null."""
        rows = [
            {
                "name": target.name,
                "kind": target.kind,
                "w_a_kv": target.w_a_kv,
                "tasks": {score.task: asdict(score) for score in scores.tasks},
                "average": scores.average,
                "ratio_paper": target.ratio_paper,
                "ratio_disk": target.ratio_disk,
                "bytes_disk": target.bytes_disk,
                "fingerprint": target.fingerprint,
            }
            for target, scores in self.rows
        ]
        return {"schema": SCHEMA, "rows": rows, "notes": list(self.notes)} | dict(self.facts)

    def table(self) -> str:
        """The table in Markdown, aligned for a terminal."""
        tasks = [score.task for score in self.rows[0][1].tasks]
        lines = [["", "W-A-KV", *tasks, "average", "ratio", "on disk", "MB"]]
        for target, scores in self.rows:
            size = None if target.bytes_disk is None else target.bytes_disk / 1e6
            lines.append(
                [
                    target.name.replace("|", "\\|"),
                    target.w_a_kv,
                    *(_with_error(score) for score in scores.tasks),
                    _number(scores.average, ".1f"),
                    _number(target.ratio_paper, ".2f", "x"),
                    _number(target.ratio_disk, ".2f", "x"),
                    _number(size, ".1f"),
                ]
            )
        return aligned(lines)

    def markdown(self) -> str:
        """What report.md holds."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"# Benchmark scores\n\n{self.table()}\n\n{notes}\n"

    def save(self, folder: Path) -> list[Path]:
        """Write report.json and report.md."""
        texts = {"report.json": json.dumps(self.to_dict(), indent=1), "report.md": self.markdown()}
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
