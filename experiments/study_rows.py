"""What tables of studies have in common: cells gathered by method, and the words of a row.

Cells that differ in their seed alone are repeats of one measurement: they become one row, a mean with the standard
deviation over the seeds. Nothing here knows which study a cell is of.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence

import study_cells
from study_cells import Cell

WIDTHS = ("w16", "w4", "mixed_2p79", "mixed_1p88", "w1p58")
LABELS = {
    "teacher": "16-bit teacher",
    "rtn": "plain rounding",
    "gptq": "GPTQ",
    "start": "`start=gptq`",
    "awq": "AWQ",
    "autoround": "AutoRound",
    "qat": "training on labels alone",
    "peer": "`edgerazor` 1.3.5",
    "paper": "the same losses in Razor",
    "same_formats": "Razor, small budget, the paper's formats",
    "even_rows": "Razor, small budget, every n-th row",
    "ours": "**Razor, small budget**",
}
"""What tables call a method."""

HELD_OUT = (("kl", ".3f"), ("perplexity", ".4g"), ("agreement", ".1f"))
"""Numbers on held-out text, as columns: key and digits."""


def groups(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Cells that differ in their seed alone, by quant and method, in the order of tables."""
    order = {name: place for place, name in enumerate(study_cells.METHODS)}
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["quant"], cell["method"]), []).append(cell)
    for same in found.values():
        _check_repeats(same)
    places = {quant: place for place, quant in enumerate(WIDTHS)}

    def place(key: tuple[str, str]) -> tuple[int, str, int, str]:
        return places.get(key[0], len(places)), key[0], order.get(key[1], len(order)), key[1]

    return {key: sorted(found[key], key=lambda cell: cell["seed"]) for key in sorted(found, key=place)}


def _check_repeats(cells: Sequence[Cell]) -> None:
    """End the program if cells of one row differ in more than their seed: their mean would be of two things."""
    made = {(cell["steps"], cell["calibration_tokens"] > 0, _command(cell)) for cell in cells}
    if len(made) > 1:
        first = cells[0]
        told = "\n".join(sorted(f"  {steps} steps: {command}" for steps, _, command in made))
        sys.exit(f"Cells of {first['quant']} {first['method']} are no repeats of one another:\n{told}")


def _command(cell: Cell) -> str:
    """What made it, without what a repeat may change; the peer's rate is chosen anew for every seed."""
    if cell["method"] == "teacher" or cell["study"] not in ("ladder", "vision"):
        return ""  # what any run told of it; commands for several cells at once
    own = re.sub(r"\b(seed|hydra\.run\.dir|evals|evals\.limit|results)=\S+", "", cell["command"] or "")
    return " ".join(own.split())


def spread(values: Sequence[float], digits: str) -> str:
    """Mean, and standard deviation over seeds if there are several."""
    mean = format(statistics.fmean(values), digits)
    return mean if len(values) < 2 else f"{mean} ± {format(statistics.stdev(values), digits)}"


def held_out(cells: Sequence[Cell], key: str, digits: str) -> str:
    """A held-out number of repeats; a dash if a run came to nothing."""
    values = [cell["held_out"][key] for cell in cells if cell["held_out"] is not None]
    return spread(values, digits) if values else "-"


def mean_kl(cells: Sequence[Cell]) -> float:
    """Held-out KL, over the seeds; infinite if one of them came to nothing."""
    kls = [cell["held_out"]["kl"] if cell["held_out"] else float("inf") for cell in cells]
    return statistics.fmean(kls)


def paired(some: Sequence[Cell], others: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Of both the cells whose seeds the other has too."""
    both = {cell["seed"] for cell in some} & {cell["seed"] for cell in others}
    return [cell for cell in some if cell["seed"] in both], [cell for cell in others if cell["seed"] in both]


def change(own: float, base: float) -> str:
    """How far a number is from another one; a dash where one of them is none."""
    if not (0 < base < float("inf") and own < float("inf")):
        return "-"
    return f"{100 * (own / base - 1):+.0f} %"


def average(cells: Sequence[Cell]) -> str:
    """Of the benchmarks, with the standard error that its rows leave."""
    scored = [cell["scores"] for cell in cells if cell["scores"] and cell["scores"]["tasks"]]
    if not scored:
        return "-"
    errors = [
        sum((task["stderr"] or 0) ** 2 for task in each["tasks"]) ** 0.5 / len(each["tasks"])
        for each in scored
    ]
    return f"{statistics.fmean(each['average'] for each in scored):.1f} ± {statistics.fmean(errors):.1f}"


def tokens(cell: Cell) -> str:
    """Trained on, and calibrated on if it was."""
    calibrated = cell["calibration_tokens"]
    return f"{cell['tokens']:,}" + (f" + {calibrated:,}" if calibrated else "")


def seeds(cells: Sequence[Cell]) -> str:
    """Of the repeats in a row."""
    return ", ".join(str(cell["seed"]) for cell in cells)


def hardware(cells: Sequence[Cell]) -> str:
    """What the cells were made on, for the line below a table."""
    found = {
        (c["hardware"]["device"], c["hardware"]["name"], c["hardware"]["cores"])
        for c in cells
        if c["hardware"]
    }
    machines = "; ".join(f"{device}: {name}, {cores} cores" for device, name, cores in sorted(found))
    return machines + _texts(cells)


def _texts(cells: Sequence[Cell]) -> str:
    """Says so if cells of one seed were scored on different texts; every seed holds out other documents."""
    lengths: dict[int, dict[int, int]] = {}
    for cell in cells:
        if (cell.get("held_out") or {}).get("tokens"):
            counts = lengths.setdefault(cell["seed"], {})
            counts[cell["held_out"]["tokens"]] = counts.get(cell["held_out"]["tokens"], 0) + 1
    several = {seed: counts for seed, counts in lengths.items() if len(counts) > 1}
    if not several:
        return ""
    told = "; ".join(
        f"seed {seed}: "
        + ", ".join(f"{count} of {length:,} tokens" for length, count in sorted(counts.items()))
        for seed, counts in sorted(several.items())
    )
    return f"; held-out texts are not all the same: {told}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are text."""
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)) + "\n"
