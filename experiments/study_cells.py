"""The results of studies: one JSON file a cell, all of one form.

A cell is one model that was compressed in one way: `<study>/results/<rung>/<quant>_<method>_s<seed>.json`. It says
what was done, with how many tokens, on which machine and by which command; tables and figures are made from these
files alone. A study writes a cell when it is finished, whole or not at all, and skips cells that are there: so it
can be stopped anywhere and begun again.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from razor.storage import atomic_write

Cell = dict[str, Any]
STUDIES = Path(__file__).resolve().parent
LAYERS = STUDIES / "ladder" / "layers.json"

KEYS = (
    "study",
    "rung",
    "model",
    "note",
    "quant",
    "w_a_kv",
    "method",
    "seed",
    "tokens",
    "calibration_tokens",
    "steps",
    "learning_rate",
    "schedule",
    "bits_per_weight",
    "code_bits",
    "ratio_paper",
    "ratio_disk",
    "bytes_disk",
    "held_out",
    "scores",
    "curve",
    "seconds",
    "tokens_per_second",
    "hardware",
    "versions",
    "git",
    "command",
)
"""What every cell says; null where it is unknown or does not apply. A study may add keys of its own.
Tokens are images where a model reads those."""

METHODS = (
    "teacher",
    "rtn",
    "gptq",
    "start",
    "awq",
    "autoround",
    "qat",
    "peer",
    "paper",
    "same_formats",
    "even_rows",
    "ours",
)
"""Ways to compress, in the order of tables: none, plain rounding, four kinds of rounding after training (`start` is
what train.py start=gptq begins with), training on labels alone, the paper's method in its own package, the same in
Razor, Razor's recipe for small budgets in the paper's formats, in better ones of every n-th row, and with the rows
that it finds."""


def rounded(rung: str) -> str:
    """The folder of baselines whose text, and so whose held-out part, is that of a rung of the ladder."""
    return "smollm2_135m_long" if rung == "gpu" else "smollm2_135m"


def place(study: Path, rung: str, quant: str, method: str, seed: int) -> Path:
    """Where a cell of a study lies."""
    return study / "results" / rung / f"{quant}_{method}_s{seed}.json"


def write(path: Path, cell: Mapping[str, Any]) -> None:
    """Keep a finished cell.

    Raises:
        KeyError: a key of the form is missing.
    """
    if missing := [key for key in KEYS if key not in cell]:
        raise KeyError(f"a result needs {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")


def read(*folders: Path) -> list[Cell]:
    """All cells below some folders; a file that is none ends the program with its name."""
    cells = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.json")):
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            cells.append({key: cell[key] for key in KEYS} | cell)
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{path} is no result: {error!r}. Remove it, and its study makes it again.")
    return cells


def ladder(rung: str) -> list[Cell]:
    """All that stands in one table: the ladder's own cells, the peer's best, and rounding, which has no budget."""
    cells = read(STUDIES / "ladder" / "results" / rung)
    cells += [cell for cell in read(STUDIES / "vs_peer" / "results" / rung) if "tuned" in cell]
    wanted = {(cell["quant"], cell["seed"]) for cell in cells}
    others = [
        cell for cell in read(STUDIES / "baselines" / "results" / rounded(rung)) if cell["method"] in METHODS
    ]
    return cells + [cell for cell in others if (cell["quant"], cell["seed"]) in wanted]


def layers() -> dict[str, Any] | None:
    """What ladder/layers.py measured, which is no cell; None before it was run."""
    return json.loads(LAYERS.read_text(encoding="utf-8")) if LAYERS.is_file() else None


def of_run(run: Path, row: str = "after", **given: Any) -> Cell:
    """The cell of a finished run of train.py: the model `row` of its report.

    Args:
        run: its folder.
        row: teacher, before or after.
        given: study, rung, quant, method, command and whatever else the report does not say.
    """
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    found = next(each for each in report["rows"] if each["name"] == row)
    trained, config = row == "after", report["config"]
    unit = "images" if "images_seen" in report else "tokens"
    scores = {"tasks": list(found["tasks"].values()), "average": found["average"]} if found["tasks"] else None
    held_out = {key: found[key] for key in ("perplexity", "kl", "agreement")}
    cell = {
        "model": report["model"],
        "note": config["model"].get("note"),
        "w_a_kv": found["w_a_kv"],
        "seed": report["seed"],
        "tokens": report[f"{unit}_seen"] if trained else 0,
        "calibration_tokens": _looked_at(report) if row != "teacher" else 0,
        "steps": report["steps"] if trained else 0,
        "learning_rate": config["trainer"]["learning_rate"] if trained else None,
        "schedule": config["trainer"]["schedule"] if trained else None,
        "bits_per_weight": 16 / found["ratio_paper"],
        "code_bits": None,
        "ratio_paper": found["ratio_paper"],
        "ratio_disk": found["ratio_disk"],
        "bytes_disk": found["bytes_disk"],
        "held_out": held_out | {"tokens": found["held_out_tokens"]},
        "scores": scores,
        "curve": _curve(run) if trained else [],
        "seconds": report["seconds_training"] if trained else 0.0,
        "tokens_per_second": report[f"{unit}_per_second"] if trained else None,
        **{key: report[key] for key in ("hardware", "versions", "git")},
    }
    if trained:  # what the student was before its training
        before = next(each for each in report["rows"] if each["name"] == "before")
        cell["before"] = {key: before[key] for key in ("perplexity", "kl", "agreement", "average")}
    return cell | given


def _looked_at(report: Mapping[str, Any]) -> int:
    """Tokens that a start and a plan's scores read: the fewer rows are among the more (razor.data.calibration)."""
    start, plan = report.get("start") or {}, report.get("allocation") or {}
    return max(start.get("tokens", 0), plan.get("calibration_tokens", 0))


def _curve(run: Path) -> list[list[float]]:
    """[tokens or images seen, held-out KL] while training, from the run's log, in proportion to steps."""
    log, report = run / "logs" / "metrics.csv", json.loads((run / "report.json").read_text(encoding="utf-8"))
    callback = (report["config"].get("callbacks") or {}).get("held_out") or {}
    seen = report.get("images_seen") or report["tokens_seen"]
    rows = {row["name"]: row["kl"] for row in report["rows"]}
    points = [[0, rows["before"]]]
    if log.is_file() and callback.get("batches") is None:  # points of less text are no points of this curve
        with log.open(encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                if line.get("held_out/kl"):
                    done = int(line["step"]) + 1
                    points.append([round(seen * done / report["steps"]), float(line["held_out/kl"])])
    points = [point for point in points if point[0] < seen]
    return [*points, [seen, rows["after"]]]
