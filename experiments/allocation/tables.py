"""The table of the study of allocation, for study_tables.py."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import study_cells  # noqa: E402
import study_rows  # noqa: E402

NOT_YET = "(Not run yet.)\n"
SAID = {"every_nth": "every n-th row (the paper)", "by_error": "rows by squared error"}


def said(cell: study_cells.Cell) -> str:
    """How a plan was made."""
    if cell["method"] in SAID:
        return SAID[cell["method"]]
    trials = f", {cell['swaps']} trials on true KL" if cell["swaps"] else ""
    by = {"matrix": "matrices", "row": "rows", "block": "layers"}[cell["granularity"]]
    return f"{by} by `{cell['score']}`{trials}"


def trained() -> str:
    """Plans after training beside every n-th row, by recipe, the best last."""
    cells = study_cells.read(HERE / "results" / "trained")
    if not cells:
        return NOT_YET
    head = ["bits of", "recipe", "plan", "bits per weight", "tokens", "KL before training", "held-out KL"]
    head += ["change", "seeds"]
    found: dict[tuple[int, str, str, str], list[study_cells.Cell]] = {}
    for cell in cells:
        plan, _, recipe = cell["method"].rpartition("_")
        steps = int(str(cell["rung"]).rpartition("_")[2])
        found.setdefault((steps, cell["quant"], recipe, plan), []).append(cell)
    means = {key: study_rows.mean_kl(same) for key, same in found.items()}
    rows = []
    for steps, quant, recipe, plan in sorted(found, key=lambda key: (key[:3], -means[key])):
        key, base = (steps, quant, recipe, plan), means.get((steps, quant, recipe, "every_nth"))
        same, change = found[key], "" if base is None else study_rows.change(means[key], base)
        more = (same[0].get("plan_tokens") or 0) - same[0]["calibration_tokens"]  # a start's are among them
        looked = f" + {more:,}" if more > 0 else ""
        row = [f"`{quant}`", f"`{recipe}`", SAID.get(plan, f"`{plan}`"), f"{same[0]['bits_per_weight']:.3f}"]
        row += [study_rows.tokens(same[0]) + looked]
        row += [study_rows.spread([cell["curve"][0][1] for cell in same], ".2f")]
        rows.append([*row, study_rows.held_out(same, "kl", ".3f"), change, study_rows.seeds(same)])
    hardware = study_rows.hardware(cells)
    tokens = "tokens: trained on + calibrated on + looked at for the plan alone"
    return f"{study_rows.markdown(head, rows, 3)}\n({hardware}; {tokens}.)\n"


def allocation(rung: str = "smollm2_135m") -> str:
    """Every plan beside the paper's mixing of the same bits, the best first."""
    cells = study_cells.read(HERE / "results" / rung)
    if not cells:
        return NOT_YET
    head = ["bits of", "plan", "code bits", "bits per weight", "held-out KL", "change", "tokens looked at"]
    found: dict[tuple[str, str], list[study_cells.Cell]] = {}
    for cell in cells:
        found.setdefault((cell["quant"], cell["method"]), []).append(cell)
    rows = []
    for quant in sorted({cell["quant"] for cell in cells}, reverse=True):
        same = {method: each for (own, method), each in found.items() if own == quant}
        means = {method: statistics.fmean(c["held_out"]["kl"] for c in each) for method, each in same.items()}
        for method in sorted(same, key=lambda method: -means[method]):
            first, base = same[method][0], means.get("every_nth")
            against = "" if base is None else f"{100 * (means[method] / base - 1):+.0f} %"
            row = [f"`{quant}`", said(first), f"{first['code_bits']:.2f}", f"{first['bits_per_weight']:.3f}"]
            kl = study_rows.held_out(same[method], "kl", ".3f")
            rows.append([*row, kl, against, f"{first['calibration_tokens']:,}"])
    return f"{study_rows.markdown(head, rows, 2)}\n({study_rows.hardware(cells)}.)\n"
