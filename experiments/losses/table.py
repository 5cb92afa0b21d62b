"""The runs of a losses sweep as one table.

    python experiments/losses/table.py runs/losses > experiments/losses/table.md

Each folder of the sweep is one run, named as it was swept; its figures come from report.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def tokens(report: dict[str, Any]) -> int:
    """Tokens trained on, repeated ones counted each time."""
    return round(report["train_epochs"] * report["train_tokens_distinct"])


def main(sweep: Path) -> None:
    """Print the table, best first."""
    rows = []
    for path in sorted(sweep.glob("*/report.json")):
        report = json.loads(path.read_text())
        before, after = (
            next(row for row in report["rows"] if row["name"] == name) for name in ("before", "after")
        )
        rows.append((after["kl"], path.parent.name, before, after, report))
    if not rows:
        sys.exit(f"No report.json below {sweep}/*/ .")
    print(
        "| run | held-out KL before | KL after | perplexity | same top token, % | steps | tokens seen | tokens/s |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kl, name, before, after, report in sorted(rows, key=lambda row: row[0]):
        print(
            f"| {name} | {before['kl']:.3f} | {kl:.3f} | {after['perplexity']:.2f} | {after['agreement']:.1f} | "
            f"{report['steps']} | {tokens(report):,} | {report['tokens_per_second']:.0f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/losses"))
