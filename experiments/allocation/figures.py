"""The figures of one allocation, from the files that are kept of it in `found`.

    razor allocate ... curve=8 out=experiments/allocation/found      # README.md has the whole command
    make table

draws `plan.png` (bits by layer and kind of matrix), `sensitivity.png` and `budgets.png` here.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from razor.cli import config as cli
from razor.evals.allocation_figures import draw_budgets, draw_sensitivity
from razor.evals.plan_figure import draw_plan
from razor.evals.plan_table import PlanTable
from razor.recipe import PlanFile

HERE = Path(__file__).resolve().parent
FOUND = HERE / "found"
NAMES = {
    "plan": "Bits by layer and kind of matrix",
    "sensitivity": "What each option would lose, by kind of matrix and by layer",
    "budgets": "Predicted loss and true KL at every budget",
}


def draw(found: Path, into: Path) -> list[Path]:
    """Draw the figures of an allocation's folder (PNG); returns them.

    Args:
        found: with plan.yaml, scores.csv and allocation.json.
        into: folder of the figures.
    """
    numbers = json.loads((found / "allocation.json").read_text(encoding="utf-8"))
    with (found / "scores.csv").open(encoding="utf-8") as stream:
        losses = [(line[0], line[1], float(line[-1])) for line in list(csv.reader(stream))[1:]]
    source = cli.model_source(cli.composed("plan", [f"model={numbers['model']}"]))
    plan, sensitivity, budgets = (into / f"{name}.png" for name in NAMES)
    draw_plan(PlanTable(source, PlanFile(numbers["name"], found / "plan.yaml")), plan)
    draw_sensitivity(numbers, losses, sensitivity)
    draw_budgets(numbers, budgets)
    return [plan, sensitivity, budgets]


def draw_all() -> list[Path]:
    """Those of the study; none before there is a folder to draw."""
    return draw(FOUND, HERE) if FOUND.is_dir() else []


def shown() -> str:
    """Markdown that shows them, with a line that says of what; nothing before there are any."""
    if not FOUND.is_dir():
        return ""
    numbers = json.loads((FOUND / "allocation.json").read_text(encoding="utf-8"))
    bits = f"{numbers['code_bits']:.2f} code bits, {numbers['bits_per_weight']:.3f} bits per weight"
    by = f"options {', '.join(numbers['options'])}, by {numbers['granularity']}, `{numbers['score']}`"
    images = [f"![{alt}](../experiments/allocation/{name}.png)\n\n" for name, alt in NAMES.items()]
    return f"{''.join(images)}({numbers['model']}, {bits}; {by}.)\n"
