"""Writes the tables of studies into README.md, docs/ and experiments/ from the results, and draws their figures.

    python experiments/study_tables.py                    # or make table

A function here makes the table of one study; what rows have in common is in study_rows, how a table comes into a
document in study_documents, figures in study_figures.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import study_cells  # noqa: E402
import study_documents  # noqa: E402
import study_figures  # noqa: E402
from allocation import figures as allocation_figures  # noqa: E402
from allocation.tables import allocation, trained  # noqa: E402
from study_cells import Cell  # noqa: E402
from study_rows import (  # noqa: E402
    HELD_OUT,
    LABELS,
    WIDTHS,
    average,
    change,
    groups,
    hardware,
    held_out,
    markdown,
    mean_kl,
    paired,
    seeds,
    spread,
    tokens,
)
from vision.tables import vision  # noqa: E402

NOT_YET = "(Not run yet.)\n"
SAME_FORMATS = ("w4", "w1p58")
"""Widths at which the recipe's formats hold what the paper's do, and only find their scales otherwise."""

ROWS = {
    "same_formats": "every n-th, int4 and ternary",
    "even_rows": "every n-th, better formats",
    "ours": "found",
}
OTHER_ROWS = ("same_formats", "even_rows")
"""The recipe without its plan: in the paper's formats, and in its own; both of every n-th row."""


def ladder(rung: str) -> str:
    """All methods at all widths, at one budget."""
    cells = study_cells.ladder(rung)
    if not cells:
        return NOT_YET
    head = ["W-A-KV", "method", "bits per weight", "ratio", "tokens", "held-out KL", "perplexity"]
    head += ["same top token, %", "five tasks", "seeds"]
    rows = []
    for (_, method), same in groups(cells).items():
        first = same[0]
        row = [first["w_a_kv"], LABELS[method], f"{first['bits_per_weight']:.2f}"]
        row += [f"{first['ratio_paper']:.2f}", tokens(first)]
        row += [held_out(same, key, digits) for key, digits in HELD_OUT]
        rows.append([*row, average(same), seeds(same)])
    scored = sorted({task["rows"] for cell in cells for task in (cell["scores"] or {}).get("tasks") or []})
    tasks = f"; five tasks: {' or '.join(map(str, scored))} rows of each" if scored else ""
    return f"{markdown(head, rows, 2)}\n({hardware(cells)}; tokens: trained on + calibrated on{tasks}.)\n"


def variants(quant: str, steps: int) -> str:
    """The ablation of a width at so many steps: each variant beside the paper's losses, or the first."""
    found = study_cells.read(HERE / "small_budget" / "results" / f"{steps}_steps")
    cells = [cell for cell in found if cell["quant"] == quant]
    by_name = {method: same for (_, method), same in groups(cells).items()}
    if not by_name:
        return NOT_YET
    against = "paper" if "paper" in by_name else next(iter(by_name))
    head = ["variant", "tokens", "held-out KL before training", "held-out KL"]
    head += [f"against `{against}`", "seeds"]
    rows = []
    for name in sorted(by_name, key=lambda name: mean_kl(by_name[name])):
        same = by_name[name]
        row = [f"`{name}`", tokens(same[0]), spread([cell["curve"][0][1] for cell in same], ".2f")]
        row += [held_out(same, "kl", ".3f"), change(mean_kl(same), mean_kl(by_name[against])), seeds(same)]
        rows.append(row)
    return f"{markdown(head, rows)}\n({hardware(cells)}; tokens: trained on + calibrated on.)\n"


def grid(rung: str) -> str:
    """The peer's learning rates and schedules."""
    cells = study_cells.read(HERE / "vs_peer" / "results" / rung / "grid")
    head = ["quant", "learning rate", "schedule", "seed", "tokens", "held-out KL", "perplexity"]

    def place(cell: Cell) -> tuple[int, str, float, int]:
        return WIDTHS.index(cell["quant"]), cell["schedule"], cell["learning_rate"], cell["seed"]

    rows = []
    for cell in sorted(cells, key=place):
        row = [f"`{cell['quant']}`", f"{cell['learning_rate']:g}", cell["schedule"], str(cell["seed"])]
        row += [f"{cell['tokens']:,}", *(held_out([cell], key, digits) for key, digits in HELD_OUT[:2])]
        rows.append(row)
    return f"{markdown(head, rows)}\n({hardware(cells)}.)\n"


def rounding(rung: str) -> str:
    """Rounding after training: all methods at all formats."""
    cells = study_cells.read(HERE / "baselines" / "results" / rung)
    head = ["quant", "W-A-KV", "method", "bits per weight", "calibrated on", "held-out KL", "perplexity"]
    head += ["same top token, %", "min", "seeds"]
    rows = []
    for (quant, method), same in groups(cells).items():
        row = [f"`{quant}`", same[0]["w_a_kv"], LABELS[method], f"{same[0]['bits_per_weight']:.2f}"]
        row.append(f"{same[0]['calibration_tokens']:,}")
        row += [held_out(same, key, digits) for key, digits in HELD_OUT]
        rows.append([*row, spread([cell["seconds"] / 60 for cell in same], ".1f"), seeds(same)])
    return f"{markdown(head, rows, 3)}\n({hardware(cells)}.)\n"


def beside_peer() -> str:
    """Peer and small-budget recipe, at every budget and width that has both."""
    head = ["tokens seen", "W-A-KV", "bits per weight", "`edgerazor` 1.3.5", "this recipe in its formats"]
    head += ["every n-th row", "this recipe", "change", "peer's five tasks, %", "this recipe's", "seeds"]
    rows, used = [], []
    for rung in ("small", "cpu", "gpu"):
        found = groups(study_cells.ladder(rung))
        for quant in WIDTHS:
            peer, ours = paired(found.get((quant, "peer"), []), found.get((quant, "ours"), []))
            if peer and ours:
                alike, even = ours, ours
                if quant not in SAME_FORMATS:
                    alike, even = (paired(found.get((quant, name), []), peer)[0] for name in OTHER_ROWS)
                used += [*peer, *ours, *alike, *even]
                row = [f"{peer[0]['tokens']:,}", ours[0]["w_a_kv"], f"{ours[0]['bits_per_weight']:.2f}"]
                row += [held_out(same, "kl", ".3f") if same else "-" for same in (peer, alike, even, ours)]
                row += [change(mean_kl(ours), mean_kl(peer)), average(peer), average(ours)]
                rows.append([*row, seeds(ours)])
    return f"{markdown(head, rows)}\n({hardware(used)}.)\n" if rows else NOT_YET


def after_training() -> str:
    """What a plan is worth once it was trained: the recipe with rows of three kinds, before and after its steps."""
    head = ["tokens seen", "W-A-KV", "rows", "bits per weight", "KL before training", "held-out KL"]
    head += ["change", "seeds"]
    rows, used = [], []
    for rung, quant in itertools.product(("small", "cpu", "gpu"), WIDTHS):
        found = groups(study_cells.ladder(rung))
        base = found.get((quant, "even_rows"), [])
        if not base or not found.get((quant, "ours")):
            continue
        for method, kind in ROWS.items():
            if same := found.get((quant, method), []):
                used += same
                seen = f"{same[0]['tokens'] + same[0]['calibration_tokens']:,}"
                before = spread([cell["curve"][0][1] for cell in same], ".3f")
                row = [seen, same[0]["w_a_kv"], kind, f"{same[0]['bits_per_weight']:.3f}", before]
                mine, other = paired(same, base)
                against = change(mean_kl(mine), mean_kl(other)) if mine else "-"
                rows.append([*row, held_out(same, "kl", ".3f"), against, seeds(same)])
    return f"{markdown(head, rows, 3)}\n({hardware(used)}.)\n" if rows else NOT_YET


def layers() -> str:
    """The figure of errors by layer, with a caption; nothing before they were measured."""
    found = study_cells.layers()
    if found is None:
        return ""
    alt = f"Relative squared error of hidden states by layer, {found['w_a_kv']}"
    read = f"{found['tokens']:,} held-out tokens, rung `{found['rung']}`, `{found['quant']}`, seed {found['seed']}"
    return f"## Layer by layer\n\n![{alt}](layers.png)\n\n({hardware([found])}; {read}.)\n"


TABLES: dict[str, Callable[[], str]] = {
    "ladder_small": lambda: ladder("small"),
    "ladder_cpu": lambda: ladder("cpu"),
    "ladder_layers": layers,
    "small_budget_w1p58": lambda: variants("w1p58", 43),
    "small_budget_mixed_2p79": lambda: variants("mixed_2p79", 43),
    "beside_peer": beside_peer,
    "baselines": lambda: rounding("smollm2_135m"),
    "allocation": allocation,
    "allocation_searched": lambda: allocation("searched"),
    "allocation_integers": lambda: allocation("integers"),
    "vision_resnet18": lambda: vision("resnet18"),
    "vision_vit_s16": lambda: vision("vit_s16"),
    "allocation_trained": trained,
    "allocation_after": after_training,
    "allocation_figures": allocation_figures.shown,
    "peer_grid_small": lambda: grid("small"),
    "peer_grid_cpu": lambda: grid("cpu"),
}
"""What documents may ask for."""


def main() -> None:
    """Tables, then figures."""
    for path in study_documents.write(TABLES):
        print(f"{path.relative_to(ROOT)}: written again", file=sys.stderr)
    for path in [*study_figures.draw_all(), *allocation_figures.draw_all()]:
        print(f"{path.relative_to(ROOT)}: drawn", file=sys.stderr)


if __name__ == "__main__":
    main()
