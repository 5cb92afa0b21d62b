"""The scripts beside the studies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "experiments" / "losses" / "table.py"


def report(kl: float) -> dict[str, Any]:
    rows = [{"name": "teacher", "kl": 0.0, "perplexity": 8.0, "agreement": 100.0, "held_out_tokens": 99}]
    rows += [
        {"name": name, "kl": value, "perplexity": 10 * value, "agreement": 50.0, "held_out_tokens": 99}
        for name, value in (("before", 10.5), ("after", kl))
    ]
    counts = {"seed": 0, "steps": 40, "tokens_seen": 20_000, "tokens_per_second": 170.4, "seconds_total": 9.0}
    return {"rows": rows, **counts, "hardware": {}, "versions": {}, "git": {}}


def table_of(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TABLE), str(folder), *words], capture_output=True, text=True)


def test_the_table_of_a_losses_sweep_names_the_best_first(tmp_path):
    for name, kl in (("ce_0", 5.25), ("kld_0", 4.125), ("unfinished", None)):
        (tmp_path / name).mkdir()
        if kl is not None:
            (tmp_path / name / "report.json").write_text(json.dumps(report(kl)))
    lines = table_of(tmp_path).stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| kld_0", "| ce_0"]
    assert [run["run"] for run in json.loads(table_of(tmp_path, "json=true").stdout)] == ["kld_0", "ce_0"]
    assert lines[2] == "| kld_0 | 10.500 | 4.125 | 41.25 | 50.0 | 40 | 20,000 | 170 |"


def test_a_sweep_without_reports_is_an_error(tmp_path):
    done = table_of(tmp_path)
    assert done.returncode == 1 and str(tmp_path) in done.stderr
