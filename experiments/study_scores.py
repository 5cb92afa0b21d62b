"""Benchmark scores of a cell that was made without them: from the packed model that its run left.

A student is trained once, and what is asked of it may grow: `razor evaluate` scores it then, and keeps every
finished task, so that this too can be stopped anywhere.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import study_cells

from razor.errors import RazorError

ROOT = Path(__file__).resolve().parents[1]


def rows_of(cell: study_cells.Cell) -> int:
    """Rows a task that a cell was asked for, which a small data set may not have; 0: it has no scores."""
    tasks = (cell.get("scores") or {}).get("tasks") or []
    return max([cell.get("limit") or 0, *(task["rows"] for task in tasks)]) if tasks else 0


def lacks(path: Path, limit: int) -> bool:
    """Whether a cell that is there was scored on fewer rows a task than are asked for."""
    return limit > 0 and rows_of(json.loads(path.read_text(encoding="utf-8"))) < limit


def add(path: Path, target: str, limit: int) -> None:
    """Score the model of a cell on five tasks, and write the cell again.

    Args:
        path: of the cell.
        target: a run's folder below the repository, or an option of conf/model.
        limit: rows a task.

    Raises:
        RazorError: the run is not here any more, or its model cannot be scored.
    """
    if "/" in target and not (ROOT / target).is_dir():
        raise RazorError(
            f"{path.name} has no scores of {limit} rows a task, and its run '{target}' is not here: remove "
            "that file, and the same command trains it again."
        )
    words = ["evaluate", target, "evals=quick", f"evals.limit={limit}"]
    print(f"\n$ razor {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "razor", *words, "json=true"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RazorError(f"That ended with code {done.returncode}; the same command goes on.")
    row: dict[str, Any] = json.loads(done.stdout)["rows"][0]
    cell = json.loads(path.read_text(encoding="utf-8"))
    study_cells.write(
        path,
        cell | {"limit": limit, "scores": {"tasks": list(row["tasks"].values()), "average": row["average"]}},
    )
