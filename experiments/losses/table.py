"""The runs of a losses sweep as one table, or as one JSON list.

    python experiments/losses/table.py runs/losses > experiments/losses/table.md
    python experiments/losses/table.py runs/losses json=true > experiments/losses/runs.json

Each folder of the sweep is one run, named as it was swept; its figures come from report.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEPT = ("seed", "steps", "tokens_seen", "tokens_per_second", "seconds_total", "hardware", "versions", "git")
SCORES = ("kl", "perplexity", "agreement", "held_out_tokens")


def read(sweep: Path) -> list[dict[str, Any]]:
    """What each run came to, the best first."""
    runs = []
    for path in sorted(sweep.glob("*/report.json")):
        report = json.loads(path.read_text())
        rows = {row["name"]: {key: row[key] for key in SCORES} for row in report["rows"]}
        own = {key: report[key] for key in KEPT}
        runs.append({"run": path.parent.name, "before": rows["before"], "after": rows["after"], **own})
    if not runs:
        sys.exit(f"No report.json below {sweep}/*/ .")
    return sorted(runs, key=lambda run: run["after"]["kl"])


def show(runs: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        "| run | held-out KL before | KL after | perplexity | same top token, % | steps | tokens seen | tokens/s |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for run in runs:
        before, after = run["before"], run["after"]
        print(
            f"| {run['run']} | {before['kl']:.3f} | {after['kl']:.3f} | {after['perplexity']:.4g} | "
            f"{after['agreement']:.1f} | {run['steps']} | {run['tokens_seen']:,} | "
            f"{run['tokens_per_second']:.0f} |"
        )


if __name__ == "__main__":
    found = read(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/losses"))
    if sys.argv[2:] == ["json=true"]:
        print(json.dumps(found, indent=1))
    else:
        show(found)
