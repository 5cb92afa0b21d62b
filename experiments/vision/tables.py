"""The tables of the study of image classifiers, for study_tables.py."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import study_cells  # noqa: E402
import study_rows  # noqa: E402

NOT_YET = "(Not run yet.)\n"
ORDER = ("teacher", "a16", "a8", "a4")


def _scores(cells: list[study_cells.Cell], task: str, key: str = "value") -> list[float]:
    """A number of a task in every repeat."""
    found = [each for cell in cells for each in cell["scores"]["tasks"] if each["task"] == task]
    return [each[key] for each in found]


def _before(cells: list[study_cells.Cell], key: str, digits: str) -> str:
    """A number of the rounded student, before training, which no seed changes; nothing of a teacher."""
    found = [cell["before"][key] for cell in cells if "before" in cell]
    return study_rows.spread(sorted(set(found)), digits) if found else ""


def vision(model: str) -> str:
    """Every width with every format of inputs, beside the teacher."""
    cells = study_cells.read(HERE / "results" / model)
    if not cells:
        return NOT_YET
    head = [
        "W-A",
        "bits per weight",
        "ratio",
        "rounded, %",
        "distilled, %",
        "standard error",
        "against the teacher",
    ]
    head += ["calibration error", "KL rounded", "KL distilled", "same class, %", "seeds"]
    found = study_rows.groups(cells)
    widths = list(dict.fromkeys(quant for quant, _ in found))
    order = [(quant, method) for quant in widths for method in ORDER if (quant, method) in found]
    base = _scores(found["w16", "teacher"], "accuracy") if ("w16", "teacher") in found else []
    rows = []
    for key in order:
        same = found[key]
        accuracy, first = _scores(same, "accuracy"), same[0]
        row = [first["w_a_kv"], f"{first['bits_per_weight']:.2f}", f"{first['ratio_paper']:.2f}"]
        row.append(_before(same, "average", ".2f"))
        row.append(study_rows.spread(accuracy, ".2f"))
        row.append(f"{statistics.fmean(_scores(same, 'accuracy', 'stderr')):.2f}")
        behind = "" if not base else f"{statistics.fmean(accuracy) - statistics.fmean(base):+.2f}"
        row.append(behind if key[1] != "teacher" else "")
        row.append(study_rows.spread(_scores(same, "calibration"), ".2f"))
        row.append(_before(same, "kl", ".4f"))
        row += [
            study_rows.held_out(same, name, digits) for name, digits in (("kl", ".4f"), ("agreement", ".1f"))
        ]
        rows.append([*row, study_rows.seeds(same)])
    images = cells[0]["held_out"]["tokens"]
    return f"{study_rows.markdown(head, rows)}\n({study_rows.hardware(cells)}; {images} held-out images.)\n"
