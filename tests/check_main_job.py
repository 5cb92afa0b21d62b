"""Judge the newest run of the main job by its report: `check_main_job.py RUNS_DIR [--since EPOCH]`.

The main job compresses a real model with real data, so its numbers wander a little from machine
to machine. What must not wander is the story they tell: three rows (teacher, student before
training, student after), naive rounding far from the teacher, distillation bringing it back.
Kept outside the test suite because it judges a run of a quarter of an hour, not a function.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

MAX_KL = 2.5  # nats per response token, held-out text; plain rounding starts at about 11
KEYS = {
    "name",
    "w_a_kv",
    "tasks",
    "average",
    "perplexity",
    "kl",
    "ratio_paper",
    "ratio_disk",
    "bytes_disk",
}


def newest_report(runs: Path, since: float) -> Path:
    """The `report.json` written last below `runs`, not before the time `since` (seconds)."""
    reports = [path for path in runs.rglob("report.json") if path.stat().st_mtime >= since]
    if not reports:
        raise SystemExit(f"no report.json below {runs} that is newer than the start of the job")
    return max(reports, key=lambda path: path.stat().st_mtime)


def complaints(report: dict[str, Any], max_kl: float = MAX_KL) -> list[str]:
    """Everything that is wrong with a report, in words; empty if it is as promised."""
    rows = report.get("rows", [])
    if len(rows) != 3:
        return [f"{len(rows)} rows instead of three (teacher, before, after)"]
    missing = [f"row {i} lacks {sorted(KEYS - row.keys())}" for i, row in enumerate(rows)]
    missing = [text for text, row in zip(missing, rows, strict=True) if KEYS - row.keys()]
    if missing:
        return missing
    teacher, before, after = rows
    # Every claim is written so that a NaN fails it.
    claims = {
        f"KL after training {after['kl']} is at most {max_kl} nats": after["kl"] <= max_kl,
        f"KL fell from {before['kl']} to {after['kl']}": after["kl"] < before["kl"],
        f"perplexity fell from {before['perplexity']} to {after['perplexity']}": (
            after["perplexity"] < before["perplexity"]
        ),
        "the teacher's perplexity is a number": math.isfinite(teacher["perplexity"]),
        "every row was scored on the same tasks": (
            bool(teacher["tasks"]) and set(teacher["tasks"]) == set(before["tasks"]) == set(after["tasks"])
        ),
        f"the student is smaller on disk: {after['bytes_disk']} bytes": (
            0 < after["bytes_disk"] < teacher["bytes_disk"] and after["ratio_disk"] > 1
        ),
    }
    return [f"does not hold: {claim}" for claim, holds in claims.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder that holds the run folders")
    parser.add_argument("--since", type=float, default=0.0, help="ignore reports older than this")
    parser.add_argument("--max-kl", type=float, default=MAX_KL, help="of a job that was cut short")
    args = parser.parse_args()
    path = newest_report(args.runs, args.since)
    wrong = complaints(json.loads(path.read_text(encoding="utf-8")), args.max_kl)
    for text in wrong:
        print(f"{path}: {text}", file=sys.stderr)
    if not wrong:
        print(f"{path}: the main job holds what it promises")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
