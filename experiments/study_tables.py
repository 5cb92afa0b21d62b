"""Writes the tables of studies into README.md, docs/ and experiments/ from the results, and draws their figures.

    python experiments/study_tables.py                    # or make table

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`. Nobody edits it by hand.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import study_cells  # noqa: E402
import study_figures  # noqa: E402
from study_cells import Cell  # noqa: E402

BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
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
    "ours": "**Razor, small budget**",
}


NOT_YET = "(Not run yet.)\n"


def groups(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Cells that differ in their seed alone, by quant and method, in the order of tables."""
    order = {name: place for place, name in enumerate(study_cells.METHODS)}
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["quant"], cell["method"]), []).append(cell)
    places = {quant: place for place, quant in enumerate(WIDTHS)}

    def place(key: tuple[str, str]) -> tuple[int, str, int, str]:
        return places.get(key[0], len(places)), key[0], order.get(key[1], len(order)), key[1]

    return {key: sorted(found[key], key=lambda cell: cell["seed"]) for key in sorted(found, key=place)}


def spread(values: Sequence[float], digits: str) -> str:
    """Mean, and standard deviation over seeds if there are several."""
    mean = format(statistics.fmean(values), digits)
    return mean if len(values) < 2 else f"{mean} ± {format(statistics.stdev(values), digits)}"


def held_out(cells: Sequence[Cell], key: str, digits: str) -> str:
    """A held-out number of repeats; a dash if a run came to nothing."""
    values = [cell["held_out"][key] for cell in cells if cell["held_out"] is not None]
    return spread(values, digits) if values else "-"


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


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are text."""
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)) + "\n"


def hardware(cells: Sequence[Cell]) -> str:
    """What the cells were made on, for the line below a table."""
    found = {
        (c["hardware"]["device"], c["hardware"]["name"], c["hardware"]["cores"])
        for c in cells
        if c["hardware"]
    }
    return "; ".join(f"{device}: {name}, {cores} cores" for device, name, cores in sorted(found))


def ladder(rung: str) -> str:
    """All methods at all widths, at one budget."""
    cells = study_cells.ladder(rung)
    if not cells:
        return NOT_YET
    head = [
        "W-A-KV",
        "method",
        "bits per weight",
        "ratio",
        "tokens",
        "held-out KL",
        "perplexity",
        "same top token, %",
    ]
    head += ["five tasks", "seeds"]
    rows = []
    for (_, method), same in groups(cells).items():
        first = same[0]
        seen = f"{first['tokens']:,}" + (
            f" + {first['calibration_tokens']:,}" if first["calibration_tokens"] else ""
        )
        row = [
            first["w_a_kv"],
            LABELS[method],
            f"{first['bits_per_weight']:.2f}",
            f"{first['ratio_paper']:.2f}",
            seen,
        ]
        row += [
            held_out(same, key, digits)
            for key, digits in (("kl", ".3f"), ("perplexity", ".4g"), ("agreement", ".1f"))
        ]
        rows.append([*row, average(same), ", ".join(str(cell["seed"]) for cell in same)])
    return f"{markdown(head, rows, 2)}\n({hardware(cells)}; tokens: trained on + calibrated on.)\n"


def variants(quant: str, steps: int) -> str:
    """The ablation of a width at so many steps: each variant beside the paper's losses, or the first."""
    cells = [
        cell
        for cell in study_cells.read(HERE / "small_budget" / "results" / f"{steps}_steps")
        if cell["quant"] == quant
    ]
    by_name = {method: same for (_, method), same in groups(cells).items()}
    if not by_name:
        return NOT_YET
    against = "paper" if "paper" in by_name else next(iter(by_name))
    head = [
        "variant",
        "tokens",
        "held-out KL before training",
        "held-out KL",
        f"against `{against}`",
        "seeds",
    ]
    base = statistics.fmean(cell["held_out"]["kl"] for cell in by_name[against])
    ordered = sorted(
        by_name, key=lambda name: statistics.fmean(cell["held_out"]["kl"] for cell in by_name[name])
    )
    rows = []
    for name in ordered:
        same = by_name[name]
        own = statistics.fmean(cell["held_out"]["kl"] for cell in same)
        starts = spread([cell["curve"][0][1] for cell in same], ".2f")
        seen = f"{same[0]['tokens']:,}" + (
            f" + {same[0]['calibration_tokens']:,}" if same[0]["calibration_tokens"] else ""
        )
        seeds = ", ".join(str(cell["seed"]) for cell in same)
        rows.append(
            [
                f"`{name}`",
                seen,
                starts,
                held_out(same, "kl", ".3f"),
                f"{100 * (own / base - 1):+.0f} %",
                seeds,
            ]
        )
    return f"{markdown(head, rows)}\n({hardware(cells)}; tokens: trained on + calibrated on.)\n"


def grid(rung: str) -> str:
    """The peer's learning rates and schedules."""
    cells = study_cells.read(HERE / "vs_peer" / "results" / rung / "grid")
    head = ["quant", "learning rate", "schedule", "seed", "tokens", "held-out KL", "perplexity"]
    rows = [
        [
            f"`{cell['quant']}`",
            f"{cell['learning_rate']:g}",
            cell["schedule"],
            str(cell["seed"]),
            f"{cell['tokens']:,}",
            held_out([cell], "kl", ".3f"),
            held_out([cell], "perplexity", ".4g"),
        ]
        for cell in sorted(
            cells, key=lambda c: (WIDTHS.index(c["quant"]), c["schedule"], c["learning_rate"], c["seed"])
        )
    ]
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
        row += [
            held_out(same, key, digits)
            for key, digits in (("kl", ".3f"), ("perplexity", ".4g"), ("agreement", ".1f"))
        ]
        row.append(spread([cell["seconds"] / 60 for cell in same], ".1f"))
        rows.append([*row, ", ".join(str(cell["seed"]) for cell in same)])
    return f"{markdown(head, rows, 3)}\n({hardware(cells)}.)\n"


def beside_peer() -> str:
    """Peer and small-budget recipe, at every budget and width that has both."""
    head = [
        "tokens seen",
        "W-A-KV",
        "bits per weight",
        "the peer's package",
        "this recipe",
        "change",
        "seeds",
    ]
    rows, used = [], []
    for rung in ("small", "cpu", "gpu"):
        found = groups(study_cells.ladder(rung))
        for quant in WIDTHS:
            peer, ours = found.get((quant, "peer")), found.get((quant, "ours"))
            if peer and ours:
                used += [*peer, *ours]
                kl = [statistics.fmean(cell["held_out"]["kl"] for cell in same) for same in (ours, peer)]
                seen, first = peer[0]["tokens"], ours[0]
                row = [f"{seen:,}", first["w_a_kv"], f"{first['bits_per_weight']:.2f}"]
                row += [held_out(same, "kl", ".3f") for same in (peer, ours)]
                seeds = ", ".join(str(cell["seed"]) for cell in ours)
                rows.append([*row, f"{100 * (kl[0] / kl[1] - 1):+.0f} %", seeds])
    return f"{markdown(head, rows)}\n({hardware(used)}.)\n" if rows else NOT_YET


TABLES: dict[str, Callable[[], str]] = {
    "ladder_small": lambda: ladder("small"),
    "ladder_cpu": lambda: ladder("cpu"),
    "small_budget_w1p58": lambda: variants("w1p58", 43),
    "small_budget_mixed_2p79": lambda: variants("mixed_2p79", 43),
    "small_budget_long": lambda: variants("w1p58", 232),
    "beside_peer": beside_peer,
    "baselines": lambda: rounding("smollm2_135m"),
    "peer_grid_small": lambda: grid("small"),
}


def documents() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(HERE.glob("*/README.md"))]


def written(text: str) -> str:
    """A document with its tables made anew; a table without a maker ends the program."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    """Tables, then figures."""
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = written(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written again", file=sys.stderr)
    for path in study_figures.draw_all():
        print(f"{path.relative_to(ROOT)}: drawn", file=sys.stderr)


if __name__ == "__main__":
    main()
